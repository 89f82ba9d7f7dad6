"""The most probable classes of image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.knobs import Checked, knob
from common.session import Answer
from common.streams import Draw
from ks_classification.data.images import Item, decode
from ks_classification.data.pixels import ImageConfig, Pixels, preparing
from ks_classification.models import stages
from ks_classification.models.build import ModelSpec


@dataclass
class PredictConfig(Checked):
    """Predictions."""

    top: int = knob(5, "how many classes to name, at most", least=1)
    batch_size: int = knob(32, "images per forward pass", least=1, most=65_536)


def answers(
    model: nn.Module,
    spec: ModelSpec,
    files: Sequence[Path],
    images: ImageConfig,
    config: PredictConfig,
    device: torch.device,
) -> Iterator[Answer]:
    """An answer per readable file, in order; unreadable ones are named on stderr with --skip-corrupt."""
    items, count = [Item(str(file), "", str(file)) for file in files], min(config.top, len(spec.classes))
    limit, prepare = preparing(spec.size, images)
    for start in range(0, len(items), config.batch_size):
        chunk = items[start : start + config.batch_size]
        good, tensors, bad = decode(chunk, prepare, images.skip_corrupt, "reading images", limit)
        for name in bad:
            print(f"left out: {name} is no readable image", file=sys.stderr)
        if not good:
            continue
        pixels = Pixels([chunk[i] for i in good], [0] * len(good), spec, images)
        pixels.kept.update(enumerate(tensors))
        batch = pixels[[Draw(i, None) for i in range(len(good))]]
        logits, _ = stages.forward(model, batch.images.to(device))
        shares, rows = logits.float().softmax(-1).topk(count)
        for name, values, best in zip(batch.names, shares.tolist(), rows.tolist(), strict=True):
            top = [{"class": spec.classes[r], "probability": p} for r, p in zip(best, values, strict=True)]
            text = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in top)
            yield Answer(name, text, {"top": top})
