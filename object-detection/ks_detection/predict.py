"""The objects in image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.images import opened, png
from common.knobs import Checked, knob
from common.lazy import Module
from common.session import Answer
from ks_detection import gallery
from ks_detection.data import transforms

v2 = Module("torchvision.transforms.v2")


@dataclass
class PredictConfig(Checked):
    """Detections."""

    threshold: float = knob(gallery.THRESHOLD, "smallest score shown", least=0, most=1)


def answers(
    model: nn.Module, files: Sequence[Path], recipe: transforms.Recipe, config: PredictConfig, device: torch.device,
    skip_corrupt: bool, draw: bool,
) -> Iterator[Answer]:  # fmt: skip
    """An answer per file, in order; {"objects": [{"class", "score", "box": [left, top, right, bottom]}, ...]}, best first.

    Args:
        skip_corrupt: name unreadable files on stderr instead of stopping.
        draw: also give the image with its boxes, as PNG.
    """
    names, resize = model.class_table.names, transforms.test_resize(recipe)
    for file, image in opened(files, skip_corrupt):
        outputs = model([transforms.normalise(resize(v2.functional.pil_to_tensor(image))).to(device)])
        found = model.post_process(outputs, [(image.height, image.width)], config.threshold)[0]
        rows = zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
        objects = [
            {"class": names[row], "score": round(score, 4), "box": [round(v, 1) for v in box]}
            for row, score, box in rows
        ]
        text = "  ".join(f"{o['class']} {o['score']:.2f} {o['box']}" for o in objects) or "nothing found"
        images = {"png": png(gallery.draw(image, found, names))} if draw else {}
        yield Answer(str(file), text, {"objects": objects}, images)
