"""Our own layout, `folder`: images/ and annotations/ (or masks/, labels/), each with training/ and validation/ (or train/, val/, test/), or
the other way round (train/images/, train/masks/), or flat. The mask of images/NAME.jpg is annotations/NAME.png and holds one class id per pixel;
in one folder it is NAME.png beside NAME.jpg, or NAME_mask.png. classes.json names the ids:

    {"classes": ["road", "car"], "ignore_index": 255, "splits": {"val": ["NAME", ...]}}

`classes` is a list in the order of the ids, or a table of ids {"0": "road", "7": "car"}; its entries may be tables with a `name`. The
whole file may also be just that list. `ignore_index` (255) is the id of pixels without a class. `splits` names the test
images of a flat folder; without it every fifth image is one. classes.txt with a name per line will do as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from common.errors import UserError
from common.files import read_text
from common.notes import note
from common.pictures import IMAGES, first_folder, is_hidden
from common.schema import read_json, typed
from ks_segmentation.data.masks import IGNORE, Table
from ks_segmentation.data.sets import MaskItem, MaskSet

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MASKS = ("annotations", "masks", "labels", "mask")  # names of their folder
ENDINGS = ("_mask.png", ".png")  # of a mask beside its image
SPLITS = {"train": ("training", "train"), "test": ("validation", "val", "test", "valid", "testing")}


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not is_hidden(p.name))


def pairs(
    images: Path, annotations: Path, table: Table, rename: Callable[[str], str] = lambda stem: stem + ".png"
) -> list[MaskItem]:
    """Every image of a folder with its mask in the other. Raises UserError where one is missing."""
    items, found = [], {path.name.lower(): path for path in images_in(annotations)}
    for image in images_in(images):
        name = rename(image.stem)
        mask = annotations / name
        mask = mask if mask.is_file() else found.get(name.lower(), mask)
        if not mask.is_file():
            raise UserError(f"image {image} has no mask {mask}.")
        items.append(MaskItem(f"{images.name}/{image.name}", image, mask, table))
    return items


def first(root: Path, names: Sequence[str]) -> Path:
    """The first of `names` that is a folder in `root`, or the first of all."""
    return first_folder(root, names) or root / names[0]


def _beside(root: Path, table: Table) -> list[MaskItem]:
    """Every image of a folder with its mask in the same one. Raises UserError where one is missing."""
    files = images_in(root)
    named, items = {path.name.lower(): path for path in files}, []
    for image in files:
        own = (named.get(image.stem.lower() + ending, image) for ending in ENDINGS)
        if mask := next((path for path in own if path != image), None):
            items.append(MaskItem(image.name, image, mask, table))
    alone = {*files} - {path for item in items for path in (item.image, item.mask)}
    if items and alone:
        raise UserError(
            f"image {min(alone)} has no mask {min(alone).stem}.png or {min(alone).stem}_mask.png beside it."
        )
    return items


def _part(root: Path, table: Table) -> list[MaskItem]:
    """Images and masks in two folders, or in one."""
    images = first_folder(root, IMAGES)
    return pairs(images, first(root, MASKS), table) if images else _beside(root, table)


class Named(msgspec.Struct):
    """A class of classes.json that is a table."""

    name: str


class Listing(msgspec.Struct):
    """classes.json."""

    classes: list[str | Named] | dict[str, str | Named] = []
    ignore_index: Annotated[int, msgspec.Meta(ge=-1, le=2**31)] = IGNORE
    splits: dict[str, list[str]] = {}

    def names(self) -> dict[int, str]:
        """By their ids, in order. Raises ValueError for an id that is no number, or that two keys state."""
        listed = self.classes if isinstance(self.classes, dict) else dict(enumerate(self.classes))
        if not all(re.fullmatch("[0-9]{1,9}", str(key)) for key in listed) or len({*map(int, listed)}) < len(listed):
            raise ValueError
        named = {int(key): entry.name if isinstance(entry, Named) else entry for key, entry in listed.items()}
        return {key: name.strip() for key, name in sorted(named.items())}

    def test(self) -> list[str]:
        """Names of the test images of a flat folder, where they are stated."""
        return [name for key in SPLITS["test"] for name in self.splits.get(key, [])]


def _listing(root: Path) -> Listing:
    """classes.json, empty where there is none. Raises UserError when it is of another form."""
    path = root / "classes.json"
    if not path.is_file():
        lines = read_text(root / "classes.txt").splitlines() if (root / "classes.txt").is_file() else []
        return Listing([line.strip() for line in lines if line.strip()])
    form = f'{path} must be {{"classes": ["road", "car"], "ignore_index": 255}}, or just the list of names'
    data = read_json(path, advice=form)
    listing: Listing = typed(data if isinstance(data, dict) else {"classes": data}, Listing, str(path), form)
    try:
        named = listing.names()
    except ValueError:
        named = {}
    if not named:
        raise UserError(f"{form}; in a table of classes the keys are ids.")
    return listing


def holds_images(root: Path) -> bool:
    """Whether images are where this layout has them."""
    places = [root, *(place for place in root.iterdir() if place.is_dir())]
    return any(first_folder(place, IMAGES) or images_in(place) for place in places)


def folder(root: Path, names: tuple[str, ...]) -> MaskSet:
    """Our own layout; see above."""
    listing = _listing(root)
    listed, ignore = dict(enumerate(names)) or listing.names(), listing.ignore_index
    if not listed:
        raise UserError(f"the classes of {root} have no names; write classes.json there or give --data-classes.")
    ids = [i for i in listed if i != ignore]
    classes = tuple(listed[i] for i in ids)
    table = Table({ignore: IGNORE, 255: IGNORE} | {i: n for n, i in enumerate(ids)})
    found: dict[str, list[MaskItem]] = {}
    images, annotations = first_folder(root, IMAGES), first(root, MASKS)
    for split, options in SPLITS.items():
        part = first_folder(images or root, options)
        if part is None:
            found[split] = []
        else:
            found[split] = pairs(part, first(annotations, [part.name]), table) if images else _part(part, table)
    if found["train"] or found["test"]:
        return MaskSet(classes, **found)
    items = _part(root, table)
    if not listing.test():
        told_of_split(root, len(items) // 5, len(items) - len(items) // 5)
    test = {Path(name).stem for name in listing.test() or [item.name for item in items[4::5]]}
    parts: dict[bool, list[MaskItem]] = {True: [], False: []}
    for item in items:
        parts[Path(item.name).stem in test].append(item)
    return MaskSet(classes, parts[False], parts[True])


def told_of_split(root: Path, test: int, train: int) -> None:
    """Says which images test where no file does."""
    note(f"{root}: no split is given: every fifth image tests ({test} of {test + train})")
