"""YOLO labels: a .txt per image with `class cx cy w h` or a polygon in 0..1, names in data.yaml, classes.txt or obj.names."""

from __future__ import annotations

import math
from pathlib import Path

from common.config import read_yaml
from common.errors import UserError
from common.files import read_text
from common.images import ImageError, size_of
from common.pictures import SUFFIXES, images_in
from common.session import Problem
from ks_detection.data.records import DetectionSet, ImageRecord, Raw, assembled

LISTS = ("classes.txt", "obj.names")  # of labelImg, which writes it beside the labels, and of Darknet


def class_list(*folders: Path) -> list[str]:
    """Class names in order, from the first of the folders with data.yaml (`names`; the name of the file is free),
    classes.txt or obj.names.

    Raises:
        UserError: none is there.
    """
    for folder in folders:
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda file: file.name != "data.yaml"):
            names = read_yaml(file).get("names")
            if isinstance(names, dict):
                if {str(key) for key in names} != {str(i) for i in range(len(names))}:
                    raise UserError(
                        f"{file}: the keys of `names` must be 0 to {len(names) - 1}, the class numbers in the labels."
                    )
                names = [name for _, name in sorted(names.items(), key=lambda pair: int(pair[0]))]
            if isinstance(names, list) and names:
                return [str(name).strip() for name in names]
            if file.name == "data.yaml":
                raise UserError(f"{file} has no list `names`.")
        if found := next((folder / name for name in LISTS if (folder / name).is_file()), None):
            return [line.strip() for line in read_text(found).splitlines() if line.strip()]
    raise UserError(f"{folders[0]} needs class names: data.yaml with `names`, or classes.txt with one per line.")


def read_yolo(images: Path, labels: Path, names: list[str]) -> DetectionSet:
    """A folder of images, as training images, and the folder of their labels, which may be the same."""
    files = images_in(images)
    if not files:
        raise UserError(f"{images} holds no images ({', '.join(SUFFIXES)}).")
    problems: list[Problem] = []
    return DetectionSet(
        [_record(images, labels, file, names, problems) for file in files], [], names, problems=problems
    )


def _record(images: Path, labels: Path, file: Path, names: list[str], problems: list[Problem]) -> ImageRecord:
    inside = file.relative_to(images)
    text = (labels / inside).with_suffix(".txt")
    try:
        size = size_of(file)
    except ImageError as error:
        problems.append(Problem("corrupt image", str(file), error.reason))
        return ImageRecord(str(inside), file, 1, 1)
    objects = []
    for number, line in enumerate(read_text(text).splitlines() if text.is_file() else [], 1):
        if not line.strip():
            continue
        where = f"{text.name}, line {number}"
        try:
            row, box = _box(line, size)
        except ValueError:
            problems.append(Problem("bad annotation", where, f"{line!r} is not `class cx cy w h`, nor a polygon"))
            continue
        if not 0 <= row < len(names):
            problems.append(Problem("unknown category", where, f"class {row}, but there are {len(names)} names"))
        else:
            objects.append(Raw(names[row], box, where))
    return assembled(str(inside), file, size, objects, problems)


def _box(line: str, size: tuple[int, int]) -> tuple[int, tuple[float, float, float, float]]:
    """(class, box in pixels) of `class cx cy w h`, with or without a score, or of `class x y x y x y ...`, a polygon."""
    if "_" in line or not line.isascii():  # Python would read 1_0 as ten, and digits of other scripts
        raise ValueError
    row, *words = line.split()
    values = [float(word) for word in words]
    if not all(map(math.isfinite, values)):
        raise ValueError
    width, height = size
    if len(values) >= 6 and len(values) % 2 == 0:
        x, y = [v * width for v in values[::2]], [v * height for v in values[1::2]]
        return int(row), (min(x), min(y), max(x), max(y))
    if len(values) > 5:
        raise ValueError
    cx, cy, w, h = (v * s for v, s in zip(values[:4], (width, height, width, height), strict=True))
    return int(row), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
