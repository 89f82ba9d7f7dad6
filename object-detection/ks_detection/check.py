"""Everything that is wrong with a data set, found before a run instead of in the middle of it."""

from __future__ import annotations

from collections import Counter

from PIL import Image, UnidentifiedImageError

from common.session import Problem
from ks_detection.data.folders import load
from ks_detection.data.records import DetectionSet, ImageRecord


def check(text: str) -> tuple[list[str], list[Problem]]:
    """(a table of images and objects per class, problems of the annotations and of every image, which is opened).

    Raises:
        UserError: there is no data set to look at.
    """
    data = load(text, strict=False)
    problems = list(data.problems)
    for record in [*data.train, *data.test]:
        problems += _image_problems(record)
    problems += _class_problems(data)
    return describe(text, data), problems


def _image_problems(record: ImageRecord) -> list[Problem]:
    if record.path is None or not record.path.is_file():
        return []  # made in memory, or reported as missing already
    try:
        with Image.open(record.path) as image:
            image.load()
            size = image.size
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        return [Problem("corrupt image", str(record.path), str(error))]
    if size != (record.width, record.height):
        text = f"is {size[0]}x{size[1]} pixels, the annotations say {record.width}x{record.height}"
        return [Problem("wrong size", str(record.path), text)]
    return []


def _class_problems(data: DetectionSet) -> list[Problem]:
    problems = []
    for part, records in (("training", data.train), ("test", data.test)):
        counts = Counter(a.label for record in records for a in record.annotations if not a.crowd)
        problems += [
            Problem("no objects", f"class {name!r}", f"has no {part} object", False)
            for name in data.classes
            if not counts[name]
        ]
    both = {p.name for p in data.train} & {p.name for p in data.test}
    if both and all(p.path is not None for p in data.train):
        shared = {p.path for p in data.train} & {p.path for p in data.test}
        problems += [
            Problem("duplicate", str(path), "is both a training and a test image", False) for path in sorted(shared)
        ]
    return problems


def describe(text: str, data: DetectionSet) -> list[str]:
    """Lines of a table: images and objects per class."""
    lines = [f"{text}: {len(data.train)} training and {len(data.test)} test images, {len(data.classes)} classes"]
    counts = [Counter(t.label for p in part for t in p.annotations if not t.crowd) for part in (data.train, data.test)]
    for name in data.classes:
        number = f" (id {data.ids[name]})" if name in data.ids else ""
        lines.append(f"  {name + number:<32}{counts[0][name]:>8} training {counts[1][name]:>8} test objects")
    return lines
