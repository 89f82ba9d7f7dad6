"""What is wrong with images and masks, before they are trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import jpeg
from common.clean import Copies
from common.errors import UserError
from common.images import png
from common.record import write_bytes, write_json
from common.session import Problem
from ks_segmentation.data import masks
from ks_segmentation.data.layouts import load
from ks_segmentation.data.masks import IGNORE, Table, UnknownId
from ks_segmentation.data.scan import pixels_per_class
from ks_segmentation.data.sets import Item, MaskItem


def check(text: str) -> tuple[list[str], list[Problem]]:
    """(a table of images per class, problems): every image and every mask is read.

    Errors: an image or a mask that cannot be read, masks with an id outside the class list, an image and a mask of
    different sizes, a mask without any class, no images at all. Notes: a class that no training mask holds.
    """
    data, images = load(text), dict[str, Counter[int]]()
    pixels: Counter[int] = Counter()
    problems: list[Problem] = []
    for part, name in (("train", "training"), ("test", "test")):
        items = getattr(data, part)
        images[part], found, wrong = _read_all(items)
        pixels += found
        problems += wrong
        problems += jpeg.damage(
            item.image for item in items if isinstance(item, MaskItem) and isinstance(item.image, Path)
        )
        problems += [] if items else [Problem("no images", text, f"has no {name} images")]
    every = pixels.total() or 1
    lines = [f"{text}: {len(data.train)} training and {len(data.test)} test images, {len(data.classes)} classes"]
    lines.append(f"  {'class':<28}{'train images':>16}{'test images':>16}{'% of pixels':>14}")
    for row, name in enumerate(data.classes):
        train, test = (images[part][row] for part in ("train", "test"))
        lines.append(f"  {name:<28}{train:>16}{test:>16}{100 * pixels[row] / every:>14.2f}")
        if not train:
            problems.append(Problem("class without images", name, "is in no training mask", fatal=False))
    return lines, problems


def _read_all(items: Sequence[Item]) -> tuple[Counter[int], Counter[int], list[Problem]]:
    """(class index -> images, class index -> pixels, problems) of all items, each read in full."""
    images: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    problems: list[Problem] = []
    strange: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        try:
            item.pixels()
            counts = pixels_per_class(item)
        except UnknownId as error:
            strange[error.id].append(item)
            continue
        except UserError as error:
            problems.append(Problem("unreadable or unfitting", item.name, str(error)))
            continue
        if not counts:
            problems.append(Problem("mask without a class", item.name, "holds no class at all"))
        images.update(counts.keys())
        pixels.update(counts)
    for id, holders in sorted(strange.items()):
        text = f"holds the id {id}, which is not in the class list, as do {len(holders) - 1} more; is it ignore_index?"
        problems.append(Problem("unknown id", holders[0].name, text))
    return images, pixels, problems


def fix(text: str, out: str) -> list[str]:
    """Writes a cleaned copy in the `folder` layout. Lines that say what was done.

    Pictures become upright RGB, masks PNG of class ids; ids outside the class list become 255, no class. Pairs that
    cannot be read or do not fit each other are left out.

    Raises:
        UserError: `out` is there already; too many classes for an 8-bit mask.
    """
    copies, data = Copies(out), load(text)
    if len(data.classes) > IGNORE:
        raise UserError(f"ids of {len(data.classes)} classes do not fit an 8-bit mask.")
    left, void = 0, 0
    for part, place in (("train", "training"), ("test", "validation")):
        for item in getattr(data, part):
            try:
                pixels, (ids, unknown) = item.pixels(), _known_ids(item)
                if pixels.shape[:2] != ids.shape:
                    raise UserError("sizes differ")
            except UserError:
                left += 1
                continue
            void += unknown
            source = item.image if isinstance(getattr(item, "image", None), Path) else pixels
            path = copies.add(f"images/{place}", source, item.name.rpartition("/")[2])
            write_bytes(Path(out) / "annotations" / place / f"{path.stem}.png", png(ids.astype(np.uint8)))
    write_json(Path(out) / "classes.json", {"classes": list(data.classes), "ignore_index": IGNORE})
    return [f"wrote {out}: {copies.rewritten} pictures rewritten as PNG, {left} pairs left out, "
            f"{void} masks with unknown ids, which are no class now"]  # fmt: skip


def _known_ids(item: Item) -> tuple[np.ndarray, int]:
    """([H, W] class indices, 1 if an id outside the class list became IGNORE)."""
    try:
        return item.ids(), 0
    except UnknownId:
        return masks.read_ids(item.mask, Table(_Any(item.table.index), item.table.read)), 1


class _Any(dict[int, int]):
    """A table of ids in which every other id is no class."""

    def __contains__(self, id: object) -> bool:
        return True

    def __missing__(self, id: int) -> int:
        return IGNORE
