"""Pascal VOC's .xml files: beside their images, or in Annotations/ with lists in ImageSets/Main."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_data, read_text
from common.pictures import IMAGES, Pictures, first_folder, parts_of, visible
from common.session import Problem
from ks_detection.data.records import DetectionSet, ImageRecord, Raw, assembled, split


def read_voc(folder: Path) -> DetectionSet:
    """Annotations/ beside JPEGImages/ (or images/), with the lists ImageSets/Main/{train,val}.txt if there are such."""
    place, lists = folder / "Annotations", folder / "ImageSets" / "Main"
    pictures = Pictures([first_folder(folder, IMAGES) or folder])
    named = {file.stem: file for file in visible(lists, "*.txt")} if lists.is_dir() else {}
    pair = parts_of(named)
    if pair is None:
        one = next(iter(named.values())) if len(named) == 1 else None
        return split(read_files(_listed(one, place) if one else visible(place, "*.xml"), pictures, one is None))
    sets = (read_files(_listed(named[part], place), pictures) for part in pair)
    return DetectionSet.of_parts(*sets)


def _listed(listing: Path, place: Path) -> list[Path]:
    files = [place / f"{line.split()[0]}.xml" for line in read_text(listing).splitlines() if line.strip()]
    if not files:
        raise UserError(f"{listing} names no annotation.")
    return files


def read_files(files: Sequence[Path], pictures: Pictures, all_of_them: bool = False) -> DetectionSet:
    """The images of .xml files as training images, their classes in alphabetical order.

    all_of_them: the files are all that there are, so that a picture without one is a problem.
    """
    problems: list[Problem] = []
    records = [record for file in files if (record := _record(file, pictures, problems))]
    if all_of_them:
        used = {record.path for record in records} | {path for file in files for path in pictures.beside(file)}
        problems += [Problem("not annotated", str(path), "has no .xml and is not used", False)
                     for path in pictures.all if path not in used]  # fmt: skip
    return DetectionSet(records, [], sorted({a.label for r in records for a in r.annotations}), problems=problems)


def _record(file: Path, pictures: Pictures, problems: list[Problem]) -> ImageRecord | None:
    try:
        root = ElementTree.fromstring(read_data(file))
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (UserError, ElementTree.ParseError, LookupError, TypeError, ValueError, OverflowError) as error:
        problems.append(Problem("bad annotation", str(file), f"cannot be read ({error})"))
        return None
    path = _picture(file, (root.findtext("filename") or "").strip(), pictures)
    objects = []
    for number, entry in enumerate(root.iter("object")):
        where = f"{file.name}, object {number + 1}"
        try:
            corners = tuple(float(entry.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "false", "False", "Unspecified", "")
            objects.append(Raw(entry.findtext("name").strip(), corners, where, difficult=difficult))
        except (TypeError, ValueError, AttributeError):
            problems.append(Problem("bad annotation", where, "has no name or no four numbers in bndbox"))
    # labelImg writes 0 x 0 for pictures that it could not measure
    return assembled(path.name, path, (width, height) if width and height else None, objects, problems)


def _picture(file: Path, stated: str, pictures: Pictures) -> Path:
    """labelImg pairs by stem, and leaves an old name in files whose picture was renamed."""
    own = list(pictures.beside(file))
    if own:
        return next((path for path in own if path.name == stated), own[0])
    found = pictures.find(stated) if stated else None
    return found if found and found.is_file() else _first_file(pictures.find(file.stem), found)


def _first_file(path: Path, other: Path | None) -> Path:
    return path if path.is_file() or other is None else other
