"""Data sets of the `datasets` library that `save_to_disk` wrote: a column of images, one of objects with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from common.images import ImageError, open_image, size_of
from common.pictures import parts_of
from common.saved_data import column_of, encoded, read_dataset, undecoded
from common.session import Problem
from ks_detection.data.records import DetectionSet, ImageRecord, Raw, assembled, split

MARKS = ("dataset_dict.json", "state.json")  # of save_to_disk
BOXES, LABELS = ("bbox", "bboxes", "boxes"), ("category", "categories", "label", "labels", "category_id")


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in MARKS)


def read_saved(folder: Path) -> DetectionSet:
    """Its images; `objects` holds per image lists of boxes (left, top, width, height in pixels) and of classes.

    Where boxes so read leave their images, and as (left, top, right, bottom) none does, they are read as the latter.

    Raises:
        UserError: no such columns.
    """
    parts = read_dataset(str(folder))
    pair = parts_of(parts)
    if pair is None:
        return split(_read(next(iter(parts.values())), folder, "train"))
    return DetectionSet.of_parts(*(_read(parts[part], folder, part) for part in pair))


def _read(part: Any, folder: Path, title: str) -> DetectionSet:
    image, column = column_of(part, "Image"), next((c for c in ("objects", "annotations") if c in part.features), None)
    if image is None or column is None:
        raise UserError(f"{folder} needs a column of images and `objects`; it has {', '.join(part.features)}.")
    feature = part.features[column]
    fields = feature if isinstance(feature, Mapping) else feature.feature
    box, label = (next((name for name in words if name in fields), None) for words in (BOXES, LABELS))
    if box is None or label is None:
        raise UserError(f"{folder}: `{column}` needs {BOXES[0]} and {LABELS[0]}; it has {', '.join(fields)}.")
    classes = getattr(fields[label], "names", None) or getattr(getattr(fields[label], "feature", None), "names", None)
    rows, problems, found = undecoded(part, image), [], []
    for index, objects in enumerate(part[column]):
        lists = objects if isinstance(objects, Mapping) else {n: [o[n] for o in objects] for n in (box, label)}
        found.append((f"{title}_{index:06d}", list(zip(lists[box], lists[label], strict=True))))
    sizes = [_size(rows, index, image, name, problems) for index, (name, _) in enumerate(found)]
    corners = _are_corners([(size, one) for size, (_, things) in zip(sizes, found, strict=True) for one, _ in things])
    records: list[ImageRecord] = []
    for index, (size, (name, things)) in enumerate(zip(sizes, found, strict=True)):
        if size is None:
            continue
        raw = [Raw(classes[y] if classes else str(y), _corners(one, corners), name) for one, y in things]
        opened = partial(_open, rows, index, image, name)
        records.append(assembled(name, None, size, raw, problems, opened))
    names = list(classes) if classes else sorted({a.label for r in records for a in r.annotations})
    return DetectionSet(records, [], names, problems=problems)


def _size(rows: Any, index: int, column: str, name: str, problems: list[Problem]) -> tuple[int, int] | None:
    try:
        return size_of(encoded(rows, index, column), name)
    except ImageError as error:
        problems.append(Problem("corrupt image", name, error.reason))
        return None


def _corners(box: Sequence[float], corners: bool) -> tuple[float, float, float, float]:
    a, b, c, d = map(float, box)
    return (a, b, c, d) if corners else (a, b, a + c, b + d)


def _are_corners(boxes: Sequence[tuple[tuple[int, int] | None, Sequence[float]]]) -> bool:
    def fits(corners: bool) -> bool:
        read = [(_corners(one, corners), size) for size, one in boxes if size]
        return all(x <= right <= w + 1 and y <= bottom <= h + 1 for (x, y, right, bottom), (w, h) in read)

    return bool(boxes) and not fits(False) and fits(True)


def _open(rows: Any, index: int, column: str, name: str) -> Image.Image:
    return open_image(encoded(rows, index, column), name)
