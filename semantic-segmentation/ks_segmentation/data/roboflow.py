"""Roboflow's export of masks: train/ and valid/ of NAME.jpg beside NAME_mask.png, and _classes.csv with the ids."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from common.errors import UserError
from common.files import read_text
from common.pictures import TEST, TRAIN, first_folder, images_in
from ks_segmentation.data.masks import IGNORE, Table
from ks_segmentation.data.sets import MaskItem, MaskSet

LIST = "_classes.csv"
ENDING = "_mask"


def is_roboflow(root: Path) -> bool:
    """Whether the training folder has a list of classes."""
    part = first_folder(root, TRAIN)
    return part is not None and (part / LIST).is_file()


def read_roboflow(root: Path) -> MaskSet:
    """The set. Raises UserError: no list of ids and names, lists that differ, or an image without a mask."""
    places = [first_folder(root, words) for words in (TRAIN, TEST)]
    lists = [_classes(place / LIST) for place in places if place]
    if not lists:
        raise UserError(f"{root} holds no train/ and valid/.")
    if any(other != lists[0] for other in lists):
        raise UserError(f"{root}: the {LIST} of its parts differ; export the data again.")
    table = Table({255: IGNORE} | {id: row for row, id in enumerate(lists[0])})
    parts = [_items(place, table) if place else [] for place in places]
    return MaskSet(tuple(lists[0].values()), parts[0], parts[1])


def _classes(file: Path) -> dict[int, str]:
    """Name by id, in the order of the ids, of "Pixel Value, Class" lines."""
    rows = list(csv.reader(io.StringIO(read_text(file)), skipinitialspace=True))
    found = {int(row[0]): row[1].strip() for row in rows[1:] if len(row) == 2 and row[0].strip().isdecimal()}
    if not found or len(found) != len([row for row in rows[1:] if row]):
        raise UserError(f"{file} must hold a line `Pixel Value, Class` and one line per class.")
    return dict(sorted(found.items()))


def _items(place: Path, table: Table) -> list[MaskItem]:
    items = []
    for image in images_in(place):
        if not image.stem.endswith(ENDING):
            mask = image.with_name(f"{image.stem}{ENDING}.png")
            if not mask.is_file():
                raise UserError(f"image {image} has no mask {mask}.")
            items.append(MaskItem(f"{place.name}/{image.name}", image, mask, table))
    return items
