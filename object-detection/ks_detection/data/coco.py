"""COCO JSON files; category ids may be sparse and stay what they are."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from common.coco import Coco, Entry, Runs, Shape, Shapes, category_names
from common.pictures import Pictures
from common.schema import read_json
from common.session import Problem
from ks_detection.data.records import DetectionSet, Raw, assembled


def read_coco(file: Path, pictures: Pictures) -> DetectionSet:
    """The images of one annotation file, as training images.

    Numbers and their text are one id. A category whose id is no number gets its place in the list, from 1.

    Raises:
        UserError: the file is missing or not COCO JSON; names the place.
    """
    data: Coco = read_json(file, Coco, "COCO has the lists `images`, `annotations` and `categories`")
    problems = _duplicates(file, data)
    names = category_names(data)
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
            text = "has no bbox of four numbers, and no segmentation that tells one"
            problems.append(Problem("bad annotation", where, text))
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


def _box(entry: Entry, shape: list[list[float]] | Runs | None) -> tuple[float, float, float, float] | None:
    """Corners, or None where nothing tells them."""
    if entry.bbox:
        if len(entry.bbox) != 4:
            return None
        left, top, width, height = entry.bbox
        return left, top, left + width, top + height
    if isinstance(shape, Runs):
        return shape.box()
    points = [value for polygon in shape or () for value in polygon]
    if len(points) < 6 or len(points) % 2 or not all(map(math.isfinite, points)):
        return None
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


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
