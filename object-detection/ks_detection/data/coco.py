"""COCO JSON files; category ids may be sparse and stay what they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec

from common.images import MAX_SIDE
from common.schema import read_json
from common.session import Problem
from ks_detection.data.records import Annotation, ImageRecord, clipped, find_box_problem

Id = int | str
Side = Annotated[float, msgspec.Meta(ge=1, le=MAX_SIDE)]  # some tools write 640.0


class Image(msgspec.Struct):
    """An entry of `images`."""

    id: Id
    file_name: str
    width: Side
    height: Side


class Entry(msgspec.Struct):
    """An entry of `annotations`; bbox: left, top, width, height."""

    bbox: tuple[float, float, float, float]
    id: Id = "?"
    image_id: Id | None = None
    category_id: int | None = None
    iscrowd: int | bool = 0


class Category(msgspec.Struct):
    """An entry of `categories`."""

    id: int
    name: str


class Coco(msgspec.Struct):
    """An annotation file, as far as it is read."""

    images: list[Image]
    annotations: list[Entry]
    categories: list[Category]


def read_coco(file: Path, images: Path) -> tuple[list[ImageRecord], dict[str, int], list[Problem]]:
    """(images, class name -> category id, problems) of one annotation file.

    Args:
        file: `instances_*.json`; images: the folder that its file names are relative to.

    Raises:
        UserError: the file is missing or not COCO JSON; names the place.
    """
    data: Coco = read_json(file, Coco, "COCO has the lists `images`, `annotations` and `categories`")
    problems = _duplicates(file, data)
    names = {category.id: category.name for category in data.categories}
    annotations: dict[Id, list[Annotation]] = {image.id: [] for image in data.images}
    sizes = {image.id: (int(image.width), int(image.height)) for image in data.images}
    for entry in data.annotations:
        where = f"{file.name}, annotation {entry.id}"
        if entry.image_id not in annotations:
            problems.append(Problem("unknown image", where, f"image_id {entry.image_id} is not in `images`"))
        elif entry.category_id not in names:
            problems.append(
                Problem("unknown category", where, f"category_id {entry.category_id} is not in `categories`")
            )
        else:
            _add(annotations[entry.image_id], entry, names, sizes[entry.image_id], where, problems)
    records = []
    for image in data.images:
        path = images / image.file_name
        if not path.is_file():
            problems.append(Problem("missing image", file.name, f"{path} does not exist"))
        if not annotations[image.id]:
            problems.append(Problem("no objects", image.file_name, "the image has no annotation", False))
        records.append(ImageRecord(image.file_name, path, *sizes[image.id], tuple(annotations[image.id])))
    return records, {name: number for number, name in names.items()}, problems


def _add(
    annotations: list[Annotation], entry: Entry, names: dict, size: tuple[int, int], where: str, problems: list
) -> None:
    left, top, width, height = entry.bbox
    box = (left, top, left + width, top + height)
    found = find_box_problem(box, *size)
    if found:
        problems.append(Problem(found[0], where, *found[1:]))
        return
    crowd = bool(entry.iscrowd)
    if crowd:
        problems.append(Problem("crowd", where, "a crowd region: scored as COCO does, not trained on", False))
    annotation = Annotation(names[entry.category_id], clipped(box, *size), crowd)
    if annotation in annotations:
        problems.append(
            Problem("duplicate", where, f"the same {annotation.label} box stands twice in one image", False)
        )
        return
    annotations.append(annotation)


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
