"""YOLO folders: images/<part>/, labels/<part>/*.txt with `class cx cy w h` in 0..1, names in data.yaml."""

from __future__ import annotations

from pathlib import Path

from common.config import read_yaml
from common.errors import UserError
from common.images import ImageError, size_of
from common.session import Problem
from ks_detection.data.records import Annotation, ImageRecord, clipped, find_box_problem

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def class_list(folder: Path) -> list[str]:
    """Class names in order, from data.yaml (`names`) or classes.txt.

    Raises:
        UserError: neither is there.
    """
    if (folder / "data.yaml").is_file():
        names = read_yaml(folder / "data.yaml").get("names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names)]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
        raise UserError(f"{folder / 'data.yaml'} has no list `names`.")
    if (folder / "classes.txt").is_file():
        return [line.strip() for line in (folder / "classes.txt").read_text().splitlines() if line.strip()]
    raise UserError(f"{folder} needs class names: data.yaml with `names`, or classes.txt with one per line.")


def read_yolo(folder: Path, part: str, names: list[str]) -> tuple[list[ImageRecord], list[Problem]]:
    """(images, problems) of images/<part> and labels/<part>."""
    files = sorted(p for p in (folder / "images" / part).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder / 'images' / part} holds no images ({', '.join(SUFFIXES)}).")
    problems: list[Problem] = []
    return [_record(folder, part, file, names, problems) for file in files], problems


def _record(folder: Path, part: str, file: Path, names: list[str], problems: list[Problem]) -> ImageRecord:
    inside = file.relative_to(folder / "images" / part)
    labels = (folder / "labels" / part / inside).with_suffix(".txt")
    try:
        width, height = size_of(file)
    except ImageError as error:
        problems.append(Problem("corrupt image", str(file), error.reason))
        return ImageRecord(str(inside), file, 1, 1)
    lines = labels.read_text().splitlines() if labels.is_file() else []
    annotations = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{labels.name}, line {number}"
        try:
            row, cx, cy, w, h = line.split()[:5]
            box = tuple(float(v) * s for v, s in zip((cx, cy, w, h), (width, height, width, height), strict=True))
            row = int(row)
        except ValueError:
            problems.append(Problem("bad annotation", where, f"{line!r} is not `class cx cy w h`"))
            continue
        if not 0 <= row < len(names):
            problems.append(Problem("unknown category", where, f"class {row}, but there are {len(names)} names"))
            continue
        corners = (box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2)
        found = find_box_problem(corners, width, height)
        if found:
            problems.append(Problem(found[0], where, *found[1:]))
        else:
            annotations.append(Annotation(names[row], clipped(corners, width, height)))
    if not annotations:
        problems.append(Problem("no objects", str(inside), "the image has no annotation", False))
    return ImageRecord(str(inside), file, width, height, tuple(annotations))
