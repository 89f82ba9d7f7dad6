"""labelme's files: NAME.json of named polygons and rectangles beside each image."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from common.coco import Side
from common.errors import UserError
from common.images import size_of
from common.pictures import Pictures, parts_of, visible
from common.schema import read_json
from ks_segmentation.data.instances import FARTHEST, GROUND, MADE, ShapeItem
from ks_segmentation.data.sets import MaskItem, MaskSet

HEAD = 4096  # bytes


class Outline(msgspec.Struct):
    """One of `shapes`; the points of a rectangle are two opposite corners."""

    label: str
    points: list[tuple[float, float]]
    shape_type: str = "polygon"

    def polygon(self) -> list[float] | None:
        """x, y, x, y, ... of its corners; None where it has no area, or lies far outside any image."""
        corners = np.array(self.points, float).reshape(-1, 2)
        if self.shape_type == "rectangle" and len(corners) == 2:
            (left, top), (right, bottom) = corners
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        elif self.shape_type != "polygon":
            return None
        return corners.ravel().tolist() if len(corners) >= 3 and (np.abs(corners) <= FARTHEST).all() else None


class Outlines(msgspec.Struct):
    """A file, as far as it is read."""

    shapes: list[Outline]
    image: str = msgspec.field(name="imagePath", default="")
    height: Side | None = msgspec.field(name="imageHeight", default=None)
    width: Side | None = msgspec.field(name="imageWidth", default=None)


def is_labelme(root: Path) -> bool:
    """Whether the first .json below the folder is one: `shapes` is among its first keys, and a key of no other format."""
    file = next(iter(visible(root, "*.json")), None)
    if file is None:
        return False
    with file.open("rb") as opened:
        return b'"shapes"' in opened.read(HEAD)


def read_labelme(root: Path) -> tuple[MaskSet, bool]:
    """(the set, whether folders state a split; else every fifth image tests).

    Raises:
        UserError: a file of another form, a missing image, or a shape that is neither polygon nor rectangle.
    """
    pair = parts_of([place.name for place in root.iterdir() if place.is_dir()])
    read = [_read(root / part) for part in pair] if pair else [_read(root)]
    names = sorted({shape.label.strip() for part in read for _, found in part for shape in found.shapes} - {GROUND})
    classes = (GROUND, *names)
    parts = [[_item(file, found, classes) for file, found in part] for part in read]
    if pair:
        return MaskSet(classes, *parts), True
    return MaskSet(classes, [x for i, x in enumerate(parts[0]) if i % 5 != 4], parts[0][4::5]), False


def _read(folder: Path) -> list[tuple[Path, Outlines]]:
    return [(file, read_json(file, Outlines, "it is no file of labelme")) for file in visible(folder, "*.json")]


def _item(file: Path, found: Outlines, classes: tuple[str, ...]) -> MaskItem:
    pictures = Pictures([file.parent])
    path = next(pictures.beside(file), None) or pictures.find(found.image or file.stem)
    if not path.is_file():
        raise UserError(f"{file}: there is no image {path}.")
    shapes = []
    for shape in found.shapes:
        if (corners := shape.polygon()) is None:
            raise UserError(
                f"{file}: {shape.label!r} is no polygon of three corners and no rectangle ({shape.shape_type})."
            )
        shapes.append((classes.index(shape.label.strip()), [corners]))
    width, height = (int(found.width), int(found.height)) if found.width and found.height else size_of(path)
    return ShapeItem(path.name, path, MADE, None, (height, width), tuple(shapes), 0)
