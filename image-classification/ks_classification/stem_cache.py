"""Outputs of a frozen stem, computed once and kept on disk: training then runs the Transformer only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import precision
from common.errors import UserError
from common.streams import derive


def stem_of(model: nn.Module) -> nn.Module:
    """The frozen stem of a hybrid model. Raises UserError when the model has none."""
    stem = getattr(getattr(model, "patch_embed", None), "backbone", None)
    if stem is None or any(p.requires_grad for p in stem.parameters()):
        raise UserError("--cache-stem needs a model with a frozen stem, such as hybrid_mobilenetv2.")
    return stem


def key_of(stem: nn.Module, names: Sequence[str], settings: dict[str, Any]) -> str:
    """A name for a cache: changes with the stem's weights, the images and the augmentation."""
    digest = hashlib.blake2b(json.dumps([list(names), settings]).encode(), digest_size=8)
    for value in stem.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def features(
    stem: nn.Module,
    folder: str,
    key: str,
    count: int,
    views: int,
    load: Callable[[int, int | None], Tensor],
    normalise: Callable[[Tensor], Tensor],
    what: str,
) -> np.ndarray:
    """[count, views, C, h, w] float16 stem outputs, from disk where they are there already.

    Args:
        load: (item, seed) -> uint8 image [3, S, S]; seed None is the test transform.
        normalise: uint8 batch -> what the stem reads.
        what: for the progress bar.
    """
    path = Path(folder) / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _compute(stem, temporary, count, views, load, normalise, what)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _compute(stem, path: Path, count: int, views: int, load, normalise, what: str) -> None:
    from tqdm import tqdm

    run = _fast(stem)
    shape = run(normalise(load(0, None)[None])).shape[1:]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, views, *shape))
    for start in tqdm(range(0, count, 64), desc=what, leave=False):
        items = range(start, min(start + 64, count))
        for view in range(views):
            images = torch.stack([load(i, None if views == 1 else derive(0, "view", i, view)) for i in items])
            out[start : start + len(images), view] = run(normalise(images)).half().numpy()
    out.flush()


def _fast(stem: nn.Module) -> Callable[[Tensor], Tensor]:
    """The stem in the format that convolutions like best: channels last, bf16 where the hardware has it."""
    device = torch.device("cpu")
    chosen = precision.choose("auto", device)
    stem = stem.to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Tensor:
        with precision.autocast(chosen, device):
            return stem(images.to(memory_format=torch.channels_last)).float()

    return run
