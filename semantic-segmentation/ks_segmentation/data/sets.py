"""Images with their masks, from files, from memory or from torch Datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.domain import train_and_test
from common.errors import UserError
from common.images import open_image
from ks_segmentation.data import masks
from ks_segmentation.data.masks import Table


@dataclass(frozen=True, eq=False)
class MaskItem:
    """One image and its mask.

    image, mask: files; or arrays already in memory, [H, W, 3] uint8 and [H, W] class indices.
    table: how to read the mask file.
    """

    name: str
    image: Path | np.ndarray
    mask: Path | np.ndarray
    table: Table | None = None

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8 RGB."""
        return self.image if isinstance(self.image, np.ndarray) else np.array(open_image(self.image))

    def ids(self) -> np.ndarray:
        """[H, W] class indices, IGNORE where there is none."""
        return self.mask if isinstance(self.mask, np.ndarray) else masks.read_ids(self.mask, self.table)

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Both."""
        return self.pixels(), self.ids()


@dataclass(frozen=True, eq=False)
class DatasetItem:
    """Item `index` of a torch Dataset of (image, mask), see `from_datasets`; reads like a `MaskItem`."""

    name: str
    dataset: Any
    index: int
    table: Table

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """[H, W, 3] uint8 RGB and [H, W] class indices, of one call of the Dataset."""
        image, mask = self.dataset[self.index]
        ids = np.asarray(mask)
        if ids.dtype.kind not in "iub":
            raise UserError(f"mask {self.name} holds {ids.dtype} values; a mask holds whole numbers, 255 for no class.")
        return np.array(open_image(image, self.name)), self.table.apply(ids, self.name)

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8 RGB."""
        return self.pair()[0]

    def ids(self) -> np.ndarray:
        """[H, W] class indices, IGNORE where there is none."""
        return self.pair()[1]


Item = MaskItem | DatasetItem


@dataclass(frozen=True)
class MaskSet:
    """Training and test images and the names of the classes in their masks."""

    classes: tuple[str, ...]
    train: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        masks.check_count(len(self.classes), "the masks")


def from_datasets(data: Any, names: Sequence[str]) -> MaskSet:
    """The set of (train, test), two torch Datasets of (image, mask [H, W] of class ids, 255 for no class).

    Images are PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W] (uint8, or float in 0..1). An index gives the
    same pair at every call: augmentation is done here.

    Args:
        names: of the ids, in order; by default the Datasets' own `classes`.

    Raises:
        UserError: no pair, or no names.
    """
    *pair, classes = train_and_test(data, names)
    if not classes:
        raise UserError("the ids of the masks have no names; name them, in order, with data_classes=[...].")
    table = masks.plain(len(classes))
    train, test = (
        [DatasetItem(f"{part}_{i:06d}", one, i, table) for i in range(len(one))]
        for part, one in zip(("train", "test"), pair, strict=True)
    )
    return MaskSet(tuple(classes), train, test)
