"""Outputs of a frozen stem, computed once and kept on disk: training then runs the Transformer only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common import precision
from common.claim import alone
from common.errors import UserError
from common.progress import watched
from common.streams import derive

if TYPE_CHECKING:
    from ks_classification.data.pixels import Pixels


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
def features(stem: nn.Module, folder: str, key: str, pixels: Pixels, views: int, what: str) -> np.ndarray:
    """[items, views, C, h, w] float16 stem outputs, from disk where they are there already.

    Args:
        views: augmented views of each image; a single one is the image as in tests.
        what: for the progress bar.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing half-written stays.
    """
    path = Path(folder) / f"{key}.npy"
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with alone(path.parent, f"{key}.lock"):  # the rows of a sweep share it
                if not path.exists():
                    _compute(stem, temporary, pixels, views, what)
                    os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"`--cache-stem {folder}` cannot be written: {error.strerror or error}.") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _compute(stem: nn.Module, path: Path, pixels: Pixels, views: int, what: str) -> None:
    run, count = _fast(stem), len(pixels)
    shape = run(pixels.normalised(pixels.image(0, None)[None])).shape[1:]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, views, *shape))
    _reserve(path)
    if not sys.stderr.isatty():
        print(f"{what}: {count} x {views}, computed once, {out.nbytes / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    for start in watched(range(0, count, 64), -(-count // 64), what):
        items = range(start, min(start + 64, count))
        for view in range(views):
            images = torch.stack([pixels.image(i, None if views == 1 else derive(0, "view", i, view)) for i in items])
            out[start : start + len(images), view] = run(pixels.normalised(images)).half().numpy()
    out.flush()


def _reserve(path: Path) -> None:
    """Takes the file's room on the disk now: a mapped file that meets a full disk kills the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fast(stem: nn.Module) -> Callable[[Tensor], Tensor]:
    """The stem in the format that convolutions like best: channels last, bf16 where the hardware has it."""
    device = torch.device("cpu")
    chosen = precision.choose("auto", device)
    stem = stem.to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Tensor:
        with precision.autocast(chosen, device):
            return stem(images.to(memory_format=torch.channels_last)).float()

    return run
