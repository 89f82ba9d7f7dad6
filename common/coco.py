"""COCO JSON files, as far as they are read, and which file of a folder is of which part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from common.errors import UserError
from common.images import MAX_SIDE
from common.pictures import IMAGES, TEST, TRAIN, Pictures, first_folder

# instances_train2017.json, train.json, coco_val.json, _annotations_test.json; not captions, keypoints or panoptic ones
OF_A_PART = re.compile(rf"(?:_?annotations?|instances|coco|bbox(?:es)?|labels)?[._-]*({'|'.join(TRAIN + TEST)})[._-]*(?:\d{{4}})?"
                       r"(?:[._-]*(?:coco|annotations?|instances))?", re.IGNORECASE)  # fmt: skip

Id = int | str
Side = Annotated[float, msgspec.Meta(ge=1, le=MAX_SIDE, multiple_of=1)]  # some tools write 640.0


class Image(msgspec.Struct):
    """An entry of `images`."""

    id: Id
    file_name: str
    width: Side | None = None
    height: Side | None = None


class Runs(msgspec.Struct):
    """A mask as run lengths, column by column, as numbers or in COCO's own letters; size: height, width."""

    size: tuple[Side, Side]
    counts: list[Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE**2)]] | str

    def runs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(first, last pixel) of each run of the mask; None where the lengths do not fill its size."""
        height, width = map(int, self.size)
        lengths = _numbers(self.counts) if isinstance(self.counts, str) else self.counts
        ends = np.cumsum(lengths, dtype=np.int64)
        if not len(ends) or ends[-1] != height * width or min(lengths) < 0:
            return None
        first, last = ends[:-1:2], ends[1::2] - 1
        return first[last >= first], last[last >= first]

    def box(self) -> tuple[float, float, float, float] | None:
        """Corners of what the mask covers; None where it covers nothing, or `runs` gives none."""
        found = self.runs()
        if found is None or not len(found[0]):
            return None
        (first, last), height = found, int(self.size[0])
        whole = bool(np.any(first // height < last // height))  # a run that goes on in the next column fills both
        top, bottom = (0, height) if whole else ((first % height).min(), (last % height).max() + 1)
        return float(first[0] // height), float(top), float(last[-1] // height + 1), float(bottom)

    def area(self) -> int:
        """Number of pixels; 0 where `runs` gives none."""
        first, last = self.runs() or (np.zeros(0, np.int64),) * 2
        return int((last - first + 1).sum())

    def mask(self) -> np.ndarray:
        """[H, W] of True and False. Raises UserError where `runs` gives none."""
        found = self.runs()
        if found is None:
            raise UserError("the run lengths of a shape do not fill its size; mend the annotations.")
        height, width = map(int, self.size)
        pixels = np.zeros(width * height, bool)
        for first, last in zip(*found, strict=True):
            pixels[first : last + 1] = True
        return pixels.reshape(width, height).T


def _numbers(letters: str) -> list[int]:
    """Run lengths from COCO's letters: five bits each, a sixth says that more follow; from the fourth length on as the
    difference to the last but one. Source: pycocotools, maskApi.c, rleFrString. [] where they are no such letters."""
    found: list[int] = []
    value = shift = 0
    for letter in letters:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 30:
            return []
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return [] if shift else found


class Shape(msgspec.Struct):
    """An entry again: polygons [x, y, x, y, ...] or run lengths."""

    segmentation: list[list[float]] | Runs | None = None


class Shapes(msgspec.Struct):
    """An annotation file, as far as shapes go. They are read where a box is missing: they take most of a large file."""

    annotations: list[Shape]


class Entry(msgspec.Struct):
    """An entry of `annotations`; bbox: left, top, width, height. Where it is left out, the segmentation tells it."""

    bbox: list[float] | None = None
    id: Id = "?"
    image_id: Id | None = None
    category_id: Id | None = None
    iscrowd: int | bool = 0


class Category(msgspec.Struct):
    """An entry of `categories`."""

    id: Id
    name: str
    supercategory: str | None = None


class Coco(msgspec.Struct):
    """An annotation file, as far as it is read."""

    images: list[Image]
    annotations: list[Entry]
    categories: list[Category]


def files_of_parts(folder: Path) -> dict[str, Path]:
    """Annotation files of objects by the part that their name states."""
    files: dict[str, Path] = {}
    for file in [file for place in (folder / "annotations", folder) for file in sorted(place.glob("*.json"))]:
        if found := OF_A_PART.fullmatch(file.stem):
            files.setdefault(found[1].lower(), file)
    return files


def images_of(part: str, file: Path, root: Path) -> Pictures:
    """The images that an annotation file of one part means."""
    year = (re.search(r"\d{4}$", file.stem) or [""])[0]
    own = [root / above / f"{part}{ending}" for above in ("", "images") for ending in dict.fromkeys((year, ""))]
    places = [place for place in own if place.is_dir()] or [p for p in [first_folder(root, IMAGES)] if p]
    return Pictures(places or [root])


OTHERS = ("data.json", "package.json", "notes.json", "config.json", "preprocessor_config.json")  # beside annotations


def lone_file(folder: Path) -> Path | None:
    """The only annotation file of a folder of images."""
    places = [place for place in (folder, folder / "annotations") if place.is_dir()]
    found = [file for place in places for file in sorted(place.glob("*.json")) if file.name not in OTHERS]
    return found[0] if len(found) == 1 and not found[0].name.startswith(".") else None


def category_names(data: Coco) -> dict[str, str]:
    """Names by id as text, without the one that Roboflow adds for the whole data set and uses for nothing."""
    used = {str(entry.category_id) for entry in data.annotations}
    above = {category.supercategory for category in data.categories if category.name != category.supercategory}
    kept = [c for c in data.categories if str(c.id) in used or c.name not in above or c.supercategory != "none"]
    return {str(category.id): category.name.strip() for category in kept}
