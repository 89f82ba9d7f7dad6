"""Pascal VOC folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from common.errors import UserError
from common.session import Problem
from ks_detection.data.records import Annotation, ImageRecord, clipped, find_box_problem


def read_voc(folder: Path, part: str, training: bool) -> tuple[list[ImageRecord], list[str], list[Problem]]:
    """(images, class names in alphabetical order, problems) of one list of a VOC folder.

    Args:
        part: a list in ImageSets/Main ("train", "val"); where there are no lists, every fifth file tests.
        training: which of the two, where there are no lists.
    """
    listing = folder / "ImageSets" / "Main" / f"{part}.txt"
    if listing.is_file():
        stems = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    else:
        every = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
        stems = [stem for i, stem in enumerate(every) if (i % 5 == 4) != training]
    if not stems:
        raise UserError(f"{folder} holds no annotation for {part!r}.")
    problems: list[Problem] = []
    records = [record for stem in stems if (record := _record(folder, stem, problems))]
    return records, sorted({a.label for record in records for a in record.annotations}), problems


def _record(folder: Path, stem: str, problems: list[Problem]) -> ImageRecord | None:
    file = folder / "Annotations" / f"{stem}.xml"
    try:
        root = ElementTree.parse(file).getroot()
        width, height = (int(root.findtext(f"size/{side}")) for side in ("width", "height"))
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        problems.append(Problem("bad annotation", str(file), f"cannot be read ({error})"))
        return None
    name = root.findtext("filename") or f"{stem}.jpg"
    images = folder / "JPEGImages"
    path = next((p for p in (images / name, *sorted(images.glob(f"{stem}.*"))) if p.is_file()), images / name)
    if not path.is_file():
        problems.append(Problem("missing image", file.name, f"{path} does not exist"))
    annotations = []
    for number, entry in enumerate(root.iter("object")):
        where = f"{file.name}, object {number + 1}"
        try:
            corners = tuple(float(entry.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax"))
            label = entry.findtext("name").strip()
        except (TypeError, ValueError, AttributeError):
            problems.append(Problem("bad annotation", where, "has no name or no four numbers in bndbox"))
            continue
        found = find_box_problem(corners, width, height)
        if found:
            problems.append(Problem(found[0], where, *found[1:]))
        else:
            annotations.append(Annotation(label, clipped(corners, width, height)))
    if not annotations:
        problems.append(Problem("no objects", file.name, "the image has no annotation", False))
    return ImageRecord(path.name, path, width, height, tuple(annotations))
