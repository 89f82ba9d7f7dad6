"""Which classes occur in which mask: read once, remembered in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.record import read_json, write_json
from ks_segmentation.layouts import MaskItem
from ks_segmentation.masks import IGNORE, size_of


def check_sizes(item: MaskItem, ids: np.ndarray) -> None:
    """Raises UserError when picture and mask differ in size."""
    have = item.image.shape[:2] if isinstance(item.image, np.ndarray) else size_of(item.image)
    if tuple(have) != ids.shape:
        raise UserError(
            f"picture {item.name} is {have[1]}x{have[0]} pixels but its mask {_where(item)} is "
            f"{ids.shape[1]}x{ids.shape[0]}; they must be equal."
        )


def _where(item: MaskItem) -> str:
    return item.name if isinstance(item.mask, np.ndarray) else str(item.mask)


def pixels_per_class(item: MaskItem) -> dict[int, int]:
    """Class index -> number of pixels in the item's mask.

    Raises:
        UserError: unreadable, an id outside the list, or another size than the picture.
    """
    ids = item.ids()
    check_sizes(item, ids)
    values, counts = np.unique(ids[ids != IGNORE], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def scan(items: Sequence[MaskItem], cache_dir: str = "") -> list[dict[int, int]]:
    """`pixels_per_class` of every item, in parallel; files that were read before and have not changed are not read.

    Raises:
        UserError: for the first item that is not right.
    """
    cache = _Cache(cache_dir, items)
    missing = [item for item in items if cache.get(item) is None]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for item, found in zip(missing, pool.map(pixels_per_class, missing), strict=True):
            cache.put(item, found)
    cache.write()
    return [cache.get(item) for item in items]


class _Cache:
    """Counts by mask file, its size and its time of change."""

    def __init__(self, folder: str, items: Sequence[MaskItem]) -> None:
        on_disk = [str(item.mask) for item in items if isinstance(item.mask, Path)]
        self.path = None
        self.known: dict[str, dict[int, int]] = {}
        if folder and on_disk:
            digest = hashlib.blake2b("\n".join(on_disk).encode(), digest_size=8).hexdigest()
            self.path = Path(folder) / f"mask-classes-{digest}.json"
            if self.path.is_file():
                stored = read_json(self.path)
                self.known = {key: {int(c): n for c, n in value.items()} for key, value in stored.items()}
        self.new = False

    def _key(self, item: MaskItem) -> str:
        if isinstance(item.mask, np.ndarray):
            return f"{item.name} {id(item.mask)}"
        stat = item.mask.stat() if item.mask.exists() else None
        table = hashlib.blake2b(repr(sorted(item.table.index.items())).encode(), digest_size=8).hexdigest()
        return f"{item.mask} {stat.st_size} {stat.st_mtime_ns} {table}" if stat else f"{item.mask} missing"

    def get(self, item: MaskItem) -> dict[int, int] | None:
        return self.known.get(self._key(item))

    def put(self, item: MaskItem, found: dict[int, int]) -> None:
        self.known[self._key(item)] = found
        self.new = True

    def write(self) -> None:
        if self.path is None or not self.new:
            return
        write_json(self.path, self.known)
