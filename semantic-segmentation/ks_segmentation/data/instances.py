"""COCO files of objects with polygons or run lengths as masks of classes: Roboflow's exports, COCO's instances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.coco import Coco, Entry, Runs, category_names, files_of_parts, images_of, lone_file
from common.errors import UserError
from common.images import MAX_SIDE, size_of
from common.pictures import IMAGES, Pictures, first_folder, parts_of
from common.schema import read_json
from ks_segmentation.data.sets import MaskItem, MaskSet

GROUND = "background"
FARTHEST = 2 * MAX_SIDE  # of a corner: pycocotools walks along every edge, pixel by pixel
MADE = np.zeros((0, 0), np.int16)  # in the place of a mask that is made when it is asked for
Shape = list[list[float]] | Runs


class Drawn(Entry):
    """An entry with its shape."""

    segmentation: Shape | None = None


class Shapes(Coco):
    """An annotation file with its shapes."""

    annotations: list[Drawn]


@dataclass(frozen=True, eq=False)
class ShapeItem(MaskItem):
    """An image whose mask is drawn from shapes; pixels outside all of them are of class `ground`.

    size: (height, width) that the shapes belong to; shapes: (class index, shape). A smaller one covers a larger one.
    """

    size: tuple[int, int] = (0, 0)
    shapes: tuple[tuple[int, Shape], ...] = ()
    ground: int = 0

    def ids(self) -> np.ndarray:
        from pycocotools import mask  # takes a moment to import

        ids = np.full(self.size, self.ground, np.int16)
        drawn = []
        for row, shape in self.shapes:
            if isinstance(shape, Runs):
                drawn.append((shape.area(), row, shape.mask))
            else:
                packed = mask.merge(mask.frPyObjects(shape, *self.size))
                drawn.append((int(mask.area(packed)), row, partial(mask.decode, packed)))
        for _, row, unpacked in sorted(
            drawn, key=lambda one: -one[0]
        ):  # one at a time: a mask is as large as its image
            inside = unpacked().astype(bool)
            if inside.shape != self.size:
                raise UserError(f"{self.name}: a shape of {inside.shape[1]}x{inside.shape[0]} pixels in another image.")
            ids[inside] = row
        return ids


def found_in(root: Path) -> list[tuple[Path, Pictures]]:
    """(annotation file, its images) for training and for testing; one for both where there is no split."""
    files = files_of_parts(root)
    if pair := parts_of(files):
        return [(files[part], images_of(part, files[part], root)) for part in pair]
    if pair := parts_of([place.name for place in root.iterdir() if place.is_dir()]):
        own = [(lone_file(root / part), Pictures([root / part])) for part in pair]
        return [(file, pictures) for file, pictures in own if file] if all(file for file, _ in own) else []
    if files:
        (part, file), *_ = files.items()
        return [(file, images_of(part, file, root))]
    file = lone_file(root)
    return [(file, Pictures([first_folder(root, IMAGES) or root]))] if file else []


def read_instances(root: Path) -> tuple[MaskSet, bool]:
    """(the set, whether its files state a split; else every fifth image tests). Crowd regions count as their class.

    Raises:
        UserError: no such files, or an annotation without a shape, or of an unknown image or category.
    """
    found = found_in(root)
    if not found:
        raise UserError(f"{root} holds no COCO files, such as annotations/instances_train2017.json beside train2017/.")
    data = [(read_json(file, Shapes, "COCO has the lists `images`, `annotations` and `categories`"), file, pictures)
            for file, pictures in found]  # fmt: skip
    names = dict.fromkeys(name for one, _, _ in data for name in category_names(one).values())
    classes = tuple(names) if GROUND in names else (GROUND, *names)
    parts = [_items(one, file, pictures, classes) for one, file, pictures in data]
    if len(parts) == 1:
        return MaskSet(classes, [x for i, x in enumerate(parts[0]) if i % 5 != 4], parts[0][4::5]), False
    return MaskSet(classes, parts[0], parts[1]), True


def _items(data: Shapes, file: Path, pictures: Pictures, classes: tuple[str, ...]) -> list[MaskItem]:
    names, shapes = category_names(data), {str(image.id): [] for image in data.images}
    for entry in data.annotations:
        where, key = f"{file.name}, annotation {entry.id}", str(entry.category_id)
        if str(entry.image_id) not in shapes or key not in names:
            raise UserError(f"{where}: image_id {entry.image_id} or category_id {key} is not listed in the file.")
        shape = entry.segmentation
        if not shape or (isinstance(shape, list) and any(len(one) < 6 or len(one) % 2 for one in shape)):
            raise UserError(f"{where} has no polygon of three corners and no run lengths; boxes alone are no masks.")
        if shape.runs() is None if isinstance(shape, Runs) else not (np.abs(np.concatenate(shape)) <= FARTHEST).all():
            raise UserError(
                f"{where}: its run lengths do not fill its size, or its polygon lies far outside any image; mend the file."
            )
        shapes[str(entry.image_id)].append((classes.index(names[key]), shape))
    items: list[MaskItem] = []
    for image in data.images:
        path = pictures.find(image.file_name)
        if not path.is_file():
            raise UserError(f"{file.name}: there is no image {path}.")
        width, height = (int(image.width), int(image.height)) if image.width and image.height else size_of(path)
        own = tuple(shapes[str(image.id)])
        items.append(ShapeItem(image.file_name, path, MADE, None, (height, width), own, classes.index(GROUND)))
    return items
