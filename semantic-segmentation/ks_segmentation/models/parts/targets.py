"""What is to be found in an image: one segment per class of its mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
    told = (labels != ignore) & (labels != UNKNOWN)
    wrong = labels[told & ((labels < 0) | (labels >= num_classes))]
    if len(wrong):
        raise UserError(
            f"a mask holds the id {int(wrong[0])}; this model has ids 0-{num_classes - 1} and {ignore} for ignored pixels."
        )
    present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, labels.where(told, num_classes).flatten(1).long(), True)
    hidden = labels == UNKNOWN
    found = []
    for label, shown, untold in zip(labels, present[:, :-1], hidden, strict=True):
        classes = shown.nonzero()[:, 0]
        found.append(Segments(classes, label == classes[:, None, None], untold if untold.any() else None))
    return found
