"""Class-id masks on disk: how each kind of file becomes an array of class indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import UserError
from common.images import open_ids

IGNORE = 255  # no class, in our arrays whatever a file uses


def check_count(count: int, what: str) -> None:
    """Raises UserError for more classes than our masks can hold."""
    if count > IGNORE:
        raise UserError(f"{what} have {count} classes; masks hold at most {IGNORE}, so train on some of them.")


class UnknownId(UserError):
    """A mask holds an `id` that is not in the class list."""

    def __init__(self, message: str, id: int) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True)
class Table:
    """Ids of a mask file -> indices of a set's classes.

    index: id -> class index; IGNORE for ids that stand for nothing. Any other id is an error.
    read: makes an id array [H, W] of the open image.
    """

    index: Mapping[int, int]
    read: Callable[[Image.Image], np.ndarray] = field(default=np.asarray)

    def apply(self, ids: np.ndarray, path: Path | str) -> np.ndarray:
        """[H, W] int16 class indices. Raises UnknownId for an id outside the table, UserError for more channels."""
        if ids.ndim != 2:
            raise UserError(f"mask {path} has {ids.shape[-1]} channels; a mask holds one class id per pixel.")
        present, inverse = np.unique(ids, return_inverse=True)
        unknown = [int(i) for i in present if int(i) not in self.index]
        if unknown:
            raise UnknownId(
                f"mask {path} holds the id {unknown[0]}, which is not in the class list (ids {_ranges(self.index)}); "
                "mend the mask, or name all ids in classes.json or --data-classes and the void one as ignore_index.",
                unknown[0],
            )
        return np.array([self.index[int(i)] for i in present], dtype=np.int16)[inverse].reshape(ids.shape)


def _ranges(ids: Mapping[int, int]) -> str:
    """'0-149, 255' for the ids of a table."""
    parts: list[list[int]] = []
    for i in sorted(ids):
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in parts[:8]) + (", ..." if len(parts) > 8 else "")


def plain(count: int, ignore: int = 255, first: int = 0) -> Table:
    """Ids `first`.. are the classes in order; `ignore` and, when `first` is 1, id 0 are none."""
    table = {first + i: i for i in range(count)}
    table |= {i: IGNORE for i in ({ignore, 0} if first else {ignore}) if i not in table}
    return Table(table)


def colours(palette: Sequence[tuple[int, int, int]], void: Sequence[tuple[int, int, int]] = ()) -> Table:
    """Masks painted in one RGB colour per class."""
    codes = {_code(c): i for i, c in enumerate(palette)} | {_code(c): IGNORE for c in void}
    return Table(codes, _rgb_codes)


def _code(colour: tuple[int, int, int]) -> int:
    return colour[0] + 256 * colour[1] + 65536 * colour[2]


def _rgb_codes(image: Image.Image) -> np.ndarray:
    """[H, W] R + 256 G + 65536 B; JPEG-like noise in a painted mask is rounded to pure colours."""
    rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    return rgb @ np.array([1, 256, 65536])


def pure_rgb_codes(image: Image.Image) -> np.ndarray:
    """The same for masks whose colours are 0 or 255 in each channel, saved with some noise."""
    rgb = (np.asarray(image.convert("RGB")) >= 128).astype(np.int64) * 255
    return rgb @ np.array([1, 256, 65536])


def read_ids(path: Path, table: Table) -> np.ndarray:
    """[H, W] int16 class indices of a mask file.

    Raises:
        UserError: unreadable, in a lossy format, more than one channel, or an id outside the class list.
    """
    return table.apply(open_ids(path, table.read), path)
