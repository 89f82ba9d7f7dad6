"""COCO JSON files; category ids may be sparse and stay what they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec

from common.images import MAX_SIDE
from common.schema import read_json
from common.session import Problem
from ks_detection.data.pictures import Pictures
from ks_detection.data.records import DetectionSet, Raw, assembled

Id = int | str
Side = Annotated[float, msgspec.Meta(ge=1, le=MAX_SIDE)]  # some tools write 640.0


class Image(msgspec.Struct):
    """An entry of `images`."""

    id: Id
    file_name: str
    width: Side | None = None
    height: Side | None = None


class Runs(msgspec.Struct):
    """A mask as run lengths, column by column, as numbers or in COCO's own letters."""

    size: tuple[int, int]
    counts: list[int] | str


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


def read_coco(file: Path, pictures: Pictures) -> DetectionSet:
    """The images of one annotation file, as training images.

    Numbers and their text are one id. A category whose id is no number gets its place in the list, from 1.

    Raises:
        UserError: the file is missing or not COCO JSON; names the place.
    """
    data: Coco = read_json(file, Coco, "COCO has the lists `images`, `annotations` and `categories`")
    problems = _duplicates(file, data)
    names = _category_names(data)
    objects: dict[str, list[Raw]] = {str(image.id): [] for image in data.images}
    shapes: list[Shape] = [Shape()] * len(data.annotations)
    if not all(entry.bbox for entry in data.annotations):
        shapes = read_json(file, Shapes, "a segmentation is a list of polygons or run lengths").annotations
    for entry, shape in zip(data.annotations, shapes, strict=True):
        where = f"{file.name}, annotation {entry.id}"
        image, category = str(entry.image_id), str(entry.category_id)
        if image not in objects:
            problems.append(Problem("unknown image", where, f"image_id {image} is not in `images`"))
        elif category not in names:
            problems.append(Problem("unknown category", where, f"category_id {category} is not in `categories`"))
        elif (box := _box(entry, shape.segmentation)) is None:
            problems.append(Problem("bad annotation", where, "has no bbox of four numbers and no segmentation"))
        else:
            crowd = bool(entry.iscrowd)
            if crowd:
                text = "a crowd region: scored as COCO does, not trained on"
                problems.append(Problem("crowd", where, text, False))
            objects[image].append(Raw(names[category], box, where, crowd))
    records = []
    for image in data.images:
        size = (int(image.width), int(image.height)) if image.width and image.height else None
        path = pictures.find(image.file_name)
        records.append(assembled(image.file_name, path, size, objects[str(image.id)], problems))
    ids = {name: int(key) if key.isdecimal() else place for place, (key, name) in enumerate(names.items(), 1)}
    return DetectionSet(records, [], sorted(ids, key=ids.__getitem__), ids, problems)


def _category_names(data: Coco) -> dict[str, str]:
    """Names by id as text, without the one that Roboflow adds for the whole data set and uses for nothing."""
    used = {str(entry.category_id) for entry in data.annotations}
    above = {category.supercategory for category in data.categories if category.name != category.supercategory}
    kept = [c for c in data.categories if str(c.id) in used or c.name not in above or c.supercategory != "none"]
    return {str(category.id): category.name for category in kept}


def _box(entry: Entry, shape: list[list[float]] | Runs | None) -> tuple[float, float, float, float] | None:
    """Corners, or None where nothing tells them."""
    if entry.bbox:
        if len(entry.bbox) != 4:
            return None
        left, top, width, height = entry.bbox
        return left, top, left + width, top + height
    if isinstance(shape, Runs):
        from pycocotools import mask  # only for files of run lengths

        runs = {"size": list(shape.size), "counts": shape.counts}
        if isinstance(runs["counts"], list):
            runs = mask.frPyObjects(runs, *runs["size"])
        left, top, width, height = mask.toBbox(runs).tolist()
        return left, top, left + width, top + height
    points = [value for polygon in shape or () for value in polygon]
    return (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])) if len(points) > 1 else None


def _duplicates(file: Path, data: Coco) -> list[Problem]:
    problems = []
    for part, key in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        counts = Counter(getattr(entry, key) for entry in getattr(data, part))
        problems += [
            Problem("duplicate", file.name, f"{key} {value!r} stands {count} times in `{part}`")
            for value, count in counts.items()
            if count > 1
        ]
    return problems
