"""What is to be found in an image: one segment per class of its mask."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from common.errors import UserError

UNKNOWN = -1  # label of a pixel whose class is not told: some class of another group


class Segments(NamedTuple):
    """What is to be found in one image.

    classes: [T]; masks: [T, H, W] of 0 and 1.
    unknown: [H, W] where the class is not told, or None where all is.
    """

    classes: Tensor
    masks: Tensor
    unknown: Tensor | None = None


def segments(labels: Tensor, ignore: int, num_classes: int) -> list[Segments]:
    """One segment per class present in each class-id map of [B, H, W]; pixels of `ignore` or UNKNOWN are in none.

    Raises:
        UserError: an id that no class has.
    """
    found = []
    for label in labels:
        classes = label.unique()
        hidden = label == UNKNOWN
        classes = classes[(classes != ignore) & (classes != UNKNOWN)]
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            wrong = int(classes.max()) if int(classes.max()) >= num_classes else int(classes.min())
            raise UserError(
                f"a mask holds the id {wrong}; this model has ids 0-{num_classes - 1} and {ignore} for ignored pixels."
            )
        found.append(Segments(classes.long(), label == classes[:, None, None], hidden if hidden.any() else None))
    return found
