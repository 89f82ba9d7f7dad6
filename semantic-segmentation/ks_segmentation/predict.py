"""The class of every pixel of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from common.errors import UserError
from common.images import opened, png
from common.session import Answer
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.gallery import painted, pixels_of, segment_pixels


def answers(
    model: nn.Module, names: Sequence[str], files: Sequence[Path], draw: bool, skip_corrupt: bool
) -> Iterator[Answer]:
    """An answer per readable file, in order; unreadable ones are named on stderr with `skip_corrupt`.

    Args:
        draw: also make NAME.ids.png with the class ids, and NAME.overlay.png with the classes painted in.
    """
    if draw and model.num_classes > IGNORE:
        raise UserError(f"ids of {model.num_classes} classes do not fit an 8-bit PNG; leave --output-dir out.")
    for file, image in opened(files, skip_corrupt):
        pixels = np.array(image)
        ids = segment_pixels(model, pixels)
        found = _shares(ids, names)
        text = "  ".join(f"{name} {100 * share:.1f} %" for name, share in found.items())
        data = {"classes": [{"class": name, "share": share} for name, share in found.items()]}
        images = {"ids.png": png(ids.astype(np.uint8)), "overlay.png": png(painted(pixels, ids))} if draw else {}
        yield Answer(str(file), text, data, images)


def _shares(ids: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Class name -> share of the pixels, the largest first."""
    counts = pixels_of(ids)
    order = [row for row in np.argsort(-counts, kind="stable") if counts[row]]
    return {names[row] if row < len(names) else f"row_{row}": float(counts[row] / ids.size) for row in order}
