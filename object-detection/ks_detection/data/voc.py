"""Pascal VOC: Annotations/*.xml beside JPEGImages/ with lists in ImageSets/Main, or .xml files beside their images."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_text
from common.session import Problem
from ks_detection.data.records import ImageRecord, Raw, assembled, every_fifth
from ks_detection.data.yolo import SUFFIXES

Read = tuple[list[ImageRecord], list[str], list[Problem]]


def read_voc(folder: Path, part: str, training: bool) -> Read:
    """(images, class names in alphabetical order, problems) of one list of a VOC folder.

    Args:
        part: a list in ImageSets/Main ("train", "val"); where there are no lists, every fifth file tests.
        training: which of the two, where there are no lists.
    """
    listing, place = folder / "ImageSets" / "Main" / f"{part}.txt", folder / "Annotations"
    if listing.is_file():
        files = [place / f"{line.split()[0]}.xml" for line in read_text(listing).splitlines() if line.strip()]
    else:
        files = every_fifth(sorted(place.glob("*.xml")), training)
    if not files:
        raise UserError(f"{folder} holds no annotation for {part!r}.")
    return read_files(files, folder / "JPEGImages")


def read_files(files: Sequence[Path], images: Path) -> Read:
    """The same of .xml files whose images lie in one folder."""
    problems: list[Problem] = []
    by_stem: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            by_stem.setdefault(path.stem, path)
    records = [record for file in files if (record := _record(file, images, by_stem, problems))]
    return records, sorted({a.label for record in records for a in record.annotations}), problems


def _record(file: Path, images: Path, by_stem: dict[str, Path], problems: list[Problem]) -> ImageRecord | None:
    try:
        root = ElementTree.parse(file).getroot()
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (OSError, ElementTree.ParseError, TypeError, ValueError, OverflowError) as error:
        problems.append(Problem("bad annotation", str(file), f"cannot be read ({error})"))
        return None
    stated = Path((root.findtext("filename") or f"{file.stem}.jpg").replace("\\", "/")).name
    path = images / stated
    if not path.is_file():  # tools rename images and leave the old name in the file
        path = by_stem.get(file.stem) or by_stem.get(path.stem) or path
    objects = []
    for number, entry in enumerate(root.iter("object")):
        where = f"{file.name}, object {number + 1}"
        try:
            corners = tuple(float(entry.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax"))
            objects.append(Raw(entry.findtext("name").strip(), corners, where))
        except (TypeError, ValueError, AttributeError):
            problems.append(Problem("bad annotation", where, "has no name or no four numbers in bndbox"))
    # labelImg writes 0 x 0 for pictures that it could not measure
    return assembled(path.name, path, (width, height) if width and height else None, objects, problems)
