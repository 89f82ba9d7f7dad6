"""Boxes in tables: CSV files with a line per box, and metadata.jsonl of image folders (Hugging Face `datasets`)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.errors import UserError
from common.files import read_text
from common.pictures import Pictures
from common.schema import typed
from common.session import Problem
from ks_detection.data.records import ImageRecord, Raw, assembled

# Headers as they are compared: in lower case, letters and digits only ("x_min", "X Min" and "bbox_xmin" are "xmin").
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))  # corner and size
LABELS, NAMES = (
    ("class", "label", "classname", "name", "category", "labelname"),
    ("filename", "image", "imagepath", "path", "imageid", "file", "imagename"),
)
PLAIN = ("filename", *CORNERS[0], "class")  # of lines without a header, as RetinaNet's generators write them
METADATA = "metadata.jsonl"
MAX_TABLE = 2**30  # bytes


class Table:
    """Lines of boxes by image.

    sizes: (width, height) of an image where stated; objects: its boxes.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int] | None] = {}
        self.objects: dict[str, list[Raw]] = {}

    def image(self, name: str, size: tuple[int, int] | None = None) -> list[Raw]:
        """The boxes of an image, to be added to."""
        self.sizes[name] = self.sizes.get(name) or size
        return self.objects.setdefault(name, [])

    def records(self, pictures: Pictures, problems: list[Problem]) -> list[ImageRecord]:
        """Records of the images."""
        return [assembled(name, pictures.find(name), self.sizes[name], things, problems)
                for name, things in self.objects.items()]  # fmt: skip

    def classes(self) -> list[str]:
        """In alphabetical order."""
        return sorted({thing.label for things in self.objects.values() for thing in things})


def read_csv(file: Path, problems: list[Problem]) -> Table:
    """The boxes of a CSV: columns for file name, class and four corners in pixels under one of their usual names, or
    six columns without a header: file, left, top, right, bottom, class. A line without a class is an image without boxes.

    Raises:
        UserError: no such columns, or corners as parts of the image.
    """
    text = "\n".join(re.split("\r\n?", read_text(file, MAX_TABLE)))  # old Macs end lines with a carriage return alone
    first_line = text.partition("\n")[0]
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first_line.count)))
    except csv.Error as error:
        raise UserError(f"{file} is no CSV ({error}); write it anew.") from None
    if not rows:
        raise UserError(f"{file} is empty.")
    header, first = [re.sub(r"[\W_]", "", word.lower()).removeprefix("bbox") for word in rows[0]], 1
    found = _columns(header)
    if found is None and len(header) == len(PLAIN):
        found, first = _columns(PLAIN), 0
    if found is None:
        raise UserError(f"{file} needs columns {', '.join(PLAIN)}; it has {', '.join(rows[0])}.")
    name, label, corners, sides = found
    sizes = [header.index(word) for word in ("width", "height") if word in header and first and not sides]
    table = Table()
    for number, row in enumerate(rows[first:], first + 1):
        if not any(row):
            continue
        where = f"{file.name}, line {number}"
        try:
            size = tuple(int(_number(row[i])) for i in sizes) if len(sizes) == 2 else None
            things = table.image(row[name].strip(), size)
            if row[label].strip():
                left, top, right, bottom = (_number(row[i]) for i in corners)
                box = (left, top, left + right, top + bottom) if sides else (left, top, right, bottom)
                things.append(Raw(row[label].strip(), box, where))
        except (ValueError, IndexError, OverflowError):
            problems.append(Problem("bad annotation", where, f"{','.join(row)!r} has no file, class and four numbers"))
    every = [value for things in table.objects.values() for thing in things for value in thing.box]
    if every and max(every) <= 1:
        raise UserError(f"{file} holds corners in 0..1; they must be in pixels.")
    return table


def _number(text: str) -> float:
    """Raises ValueError for what Python reads as a number and other programs do not."""
    if "_" in text or not text.isascii():
        raise ValueError
    return float(text)


def _columns(header: Sequence[str]) -> tuple[int, int, list[int], bool] | None:
    """Where name, class and box stand, and whether the box is a corner and a size."""
    name, label = (next((w for w in words if w in header), None) for words in (NAMES, LABELS))
    box = next((four for four in (*CORNERS, *SIDES) if set(four) <= set(header)), None)
    if name is None or label is None or box is None:
        return None
    return header.index(name), header.index(label), [header.index(word) for word in box], box in SIDES


class Objects(msgspec.Struct):
    """`objects` of a line of metadata.jsonl; bbox: left, top, width, height."""

    bbox: list[tuple[float, float, float, float]]
    categories: list[int | str] = []
    category: list[int | str] = []
    label: list[int | str] = []


class Line(msgspec.Struct):
    """A line of it."""

    file_name: str
    objects: Objects


def read_metadata(file: Path, names: Sequence[str], problems: list[Problem]) -> Table:
    """The boxes of metadata.jsonl: {"file_name", "objects": {"bbox": [[left, top, width, height]], "categories": [..]}}.

    Args:
        names: of numbered categories, in order; empty calls them by their number.
    """
    table = Table()
    for number, (line, where) in enumerate(_lines(file), 1):
        entry: Line = typed(
            line, Line, where, 'a line is {"file_name": ..., "objects": {"bbox": ..., "categories": ...}}'
        )
        things, labels = (
            table.image(entry.file_name),
            entry.objects.categories or entry.objects.category or entry.objects.label,
        )
        if len(labels) != len(entry.objects.bbox):
            text = f"{len(entry.objects.bbox)} boxes, {len(labels)} categories"
            problems.append(Problem("bad annotation", f"{file.name}, line {number}", text))
            continue
        for label, (left, top, width, height) in zip(labels, entry.objects.bbox, strict=True):
            if names and isinstance(label, int) and not 0 <= label < len(names):
                text = f"class {label}, but there are {len(names)} names"
                problems.append(Problem("unknown category", f"{file.name}, line {number}", text))
                continue
            name = names[label] if names and isinstance(label, int) else str(label)
            things.append(Raw(name, (left, top, left + width, top + height), f"{file.name}, line {number}"))
    return table


def _lines(file: Path) -> Iterator[tuple[Any, str]]:
    for number, text in enumerate(read_text(file, MAX_TABLE).splitlines(), 1):
        if text.strip():
            try:
                yield msgspec.json.decode(text), f"{file}, line {number}"
            except (msgspec.DecodeError, RecursionError) as error:
                raise UserError(f"{file}, line {number}: no JSON ({error}).") from None
