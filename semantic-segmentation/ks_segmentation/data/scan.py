"""Which classes occur in which mask: read once, remembered in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from common.errors import UserError
from common.images import probe
from common.progress import in_threads
from common.record import write_json
from common.schema import read_json
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.data.sets import Item, MaskItem

_IN_MEMORY: WeakKeyDictionary[Item, dict[int, int]] = WeakKeyDictionary()  # counts of items that are no files


def mask_file(item: Item) -> Path | None:
    """The file of an item's mask; None where it is in memory."""
    return item.mask if isinstance(item, MaskItem) and isinstance(item.mask, Path) else None


def _checked_ids(item: Item) -> np.ndarray:
    """The item's mask. Raises UserError when image and mask differ in size."""
    if isinstance(item, MaskItem) and isinstance(item.image, Path):  # the header is enough
        ids, have = item.ids(), probe(item.image)[::-1]
    else:
        pixels, ids = item.pair()
        have = pixels.shape[:2]
    if tuple(have) != ids.shape:
        raise UserError(
            f"image {item.name} is {have[1]}x{have[0]} pixels but its mask {mask_file(item) or item.name} is "
            f"{ids.shape[1]}x{ids.shape[0]}; they must be equal."
        )
    return ids


def pixels_per_class(item: Item) -> dict[int, int]:
    """Class index -> number of pixels in the item's mask.

    Raises:
        UserError: unreadable, an id outside the list, or another size than the image.
    """
    ids = _checked_ids(item)
    values, counts = np.unique(ids[ids != IGNORE], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def scan(items: Sequence[Item], cache_dir: str = "") -> list[dict[int, int]]:
    """`pixels_per_class` of every item, in parallel; files that were read before and have not changed are not read.

    Raises:
        UserError: for the first item that is not right.
    """
    cache = _Cache(cache_dir, items)
    missing = [item for item in items if cache.get(item) is None]
    for item, found in zip(missing, in_threads(pixels_per_class, missing, "reading masks"), strict=True):
        cache.put(item, found)
    cache.write()
    return [cache.get(item) for item in items]


class _Cache:
    """Counts by mask file, its size and its time of change; in memory by item."""

    def __init__(self, folder: str, items: Sequence[Item]) -> None:
        on_disk = [str(file) for file in map(mask_file, items) if file]
        self.path = None
        self.known: dict[str, dict[int, int]] = {}
        if folder and on_disk:
            digest = hashlib.blake2b("\n".join(on_disk).encode(errors="surrogatepass"), digest_size=8).hexdigest()
            self.path = Path(folder) / f"mask-classes-{digest}.json"
            if self.path.is_file():
                self.known = read_json(self.path, dict[str, dict[int, int]], "remove the file")
        self.new = False

    @staticmethod
    def _key(item: Item, file: Path) -> str:
        table = hashlib.blake2b(repr(sorted(item.table.index.items())).encode(), digest_size=8).hexdigest()
        stats = [path.stat() for path in (file, item.image) if isinstance(path, Path) and path.exists()]
        return " ".join([str(file), *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats), table])

    def get(self, item: Item) -> dict[int, int] | None:
        file = mask_file(item)
        return self.known.get(self._key(item, file)) if file else _IN_MEMORY.get(item)

    def put(self, item: Item, found: dict[int, int]) -> None:
        file = mask_file(item)
        if file:
            self.known[self._key(item, file)] = found
            self.new = True
        else:
            _IN_MEMORY[item] = found

    def write(self) -> None:
        if self.path is None or not self.new:
            return
        write_json(self.path, self.known)


def picture_key(image: Tensor) -> bytes:
    """Stands for what is on an image [3, H, W]."""
    values = image.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(repr(values.shape).encode() + values.tobytes(), digest_size=16).digest()
