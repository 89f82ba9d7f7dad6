"""The folder layouts that segmentation data comes in, each as a `MaskSet`; our own, `folder`, is in `own_folders`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from common.errors import UserError
from common.files import read_text, user_path
from common.pictures import Pictures, visible
from common.schema import read_json
from ks_segmentation.data import class_lists, masks
from ks_segmentation.data.digits import digit_scenes
from ks_segmentation.data.instances import found_in, read_instances
from ks_segmentation.data.labelme import is_labelme, read_labelme
from ks_segmentation.data.masks import IGNORE, Table
from ks_segmentation.data.own_folders import MASKS, SPLITS, first, folder, holds_images, pairs, told_of_split
from ks_segmentation.data.roboflow import is_roboflow, read_roboflow
from ks_segmentation.data.sets import MaskItem, MaskSet


def load(text: str, names: Sequence[str] = ()) -> MaskSet:
    """The data that a flag names: `KIND:FOLDER`, or just a folder of `images/` and `annotations/`, or `digits`.

    Args:
        names: class names in the order of their ids, for layouts that do not state them.

    Raises:
        UserError: unknown kind, missing folders, an image without a mask, names for a layout that has its own.
    """
    kind, colon, folder = text.partition(":")
    if not colon and text != "digits":
        kind, folder = "folder", text
    if names and kind not in NAMELESS:
        raise UserError(f"`--data-classes`: {kind} data names its classes itself.")
    if kind == "digits":
        return digit_scenes()
    if kind not in LAYOUTS:
        raise UserError(f"unknown kind of data {kind!r}; there are: {', '.join([*LAYOUTS, 'digits'])} (KIND:FOLDER).")
    root = user_path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}.")
    masked = (root / "classes.json").is_file() or any(visible(first(root, MASKS), "*.png"))
    if not colon and not masked:
        tests = {"roboflow": is_roboflow, "labelme": is_labelme, "coco": found_in}
        kind = next((name for name, test in tests.items() if test(root)), kind)
    if kind == "folder" and not holds_images(root):
        raise UserError(
            f"{root} holds no images/ and annotations/; other layouts are KIND:FOLDER ({', '.join(LAYOUTS)})."
        )
    found = LAYOUTS[kind](root, tuple(names))
    if not found.train and not found.test:
        raise UserError(f"{root} holds no images in the {kind} layout; see semantic-segmentation/README.md.")
    return found


def ade20k(root: Path, names: tuple[str, ...]) -> MaskSet:
    """images/{training,validation}; annotations_detectron2/ (class - 1, 255 none) or annotations/ (0 none)."""
    classes = names or class_lists.ADE20K
    prepared = (root / "annotations_detectron2").is_dir()
    table = masks.plain(len(classes), first=0 if prepared else 1)
    annotations = root / ("annotations_detectron2" if prepared else "annotations")
    return MaskSet(
        classes,
        pairs(root / "images/training", annotations / "training", table),
        pairs(root / "images/validation", annotations / "validation", table),
    )


def voc(root: Path, names: tuple[str, ...]) -> MaskSet:
    """JPEGImages/, SegmentationClass/ (palette masks) and ImageSets/Segmentation/{train,val}.txt."""
    table = masks.plain(len(class_lists.VOC))

    def read(split: str) -> list[MaskItem]:
        path = root / "ImageSets/Segmentation" / f"{split}.txt"
        stems = read_text(path).split() if path.is_file() else []
        pictures, found = (Pictures([root / place]) for place in ("JPEGImages", "SegmentationClass"))
        return [MaskItem(s, pictures.find(f"{s}.jpg"), found.find(f"{s}.png"), table) for s in stems]

    return MaskSet(class_lists.VOC, read("train"), read("val"))


class Category(msgspec.Struct):
    """Of a panoptic file."""

    id: int
    name: str


class PanopticImage(msgspec.Struct):
    """Likewise."""

    id: int | str
    file_name: str


class Segment(msgspec.Struct):
    """Likewise."""

    id: int
    category_id: int


class PanopticMask(msgspec.Struct):
    """Likewise."""

    image_id: int | str
    file_name: str
    segments_info: list[Segment]


class Panoptic(msgspec.Struct):
    """annotations/panoptic_*.json, as far as it is read."""

    categories: list[Category]
    images: list[PanopticImage]
    annotations: list[PanopticMask]


def coco(root: Path, names: tuple[str, ...]) -> MaskSet:
    """{train,val}2017/ and annotations/panoptic_{train,val}2017.json beside its folder of PNGs: things and stuff alike
    become one mask per category. Without these, files of objects with polygons or run lengths; see `instances`."""
    if not any((root / "annotations").glob("panoptic_*.json")):
        whole, stated = read_instances(root)
        if not stated:
            told_of_split(root, len(whole.test), len(whole.train))
        return whole
    categories: list[Category] = []
    found: dict[str, list[MaskItem]] = {"train": [], "test": []}
    for split, year in (("train", "train2017"), ("test", "val2017")):
        path = root / "annotations" / f"panoptic_{year}.json"
        if not path.is_file():
            continue
        data: Panoptic = read_json(path, Panoptic, "it is no COCO panoptic file")
        categories = categories or sorted(data.categories, key=lambda c: c.id)
        index = {c.id: i for i, c in enumerate(categories)}
        images = {i.id: i.file_name for i in data.images}
        pictures, drawn = Pictures([root / year]), Pictures([path.with_suffix("")])
        try:
            for entry in data.annotations:
                table = {s.id: index[s.category_id] for s in entry.segments_info} | {0: IGNORE}
                image, mask = pictures.find(images[entry.image_id]), drawn.find(entry.file_name)
                found[split].append(MaskItem(image.name, image, mask, Table(table, masks._rgb_codes)))
        except KeyError as error:
            raise UserError(f"{path} is no COCO panoptic file: there is no image or category {error}.") from None
    return MaskSet(tuple(c.name for c in categories), **found)


def labelme(root: Path, names: tuple[str, ...]) -> MaskSet:
    """Images beside labelme's NAME.json of polygons, in one folder or in train/ and valid/."""
    whole, stated = read_labelme(root)
    if not stated:
        told_of_split(root, len(whole.test), len(whole.train))
    return whole


def cityscapes(root: Path, names: tuple[str, ...]) -> MaskSet:
    """leftImg8bit/{train,val}/CITY/ and gtFine/ with *_gtFine_labelTrainIds.png or *_gtFine_labelIds.png."""
    trained = masks.plain(len(class_lists.CITYSCAPES))
    index = dict.fromkeys(range(-1, 34), IGNORE) | {i: n for n, i in enumerate(class_lists.CITYSCAPES_LABEL_IDS)}
    raw = Table(index | {255: IGNORE})

    def read(split: str) -> list[MaskItem]:
        items = []
        for image in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
            stem = image.name.removesuffix("_leftImg8bit.png")
            beside = root / "gtFine" / split / image.parent.name
            for ending, table in (("labelTrainIds", trained), ("labelIds", raw)):
                mask = beside / f"{stem}_gtFine_{ending}.png"
                if mask.is_file():
                    items.append(MaskItem(stem, image, mask, table))
                    break
            else:
                raise UserError(f"image {image} has no mask {mask}.")
        return items

    return MaskSet(class_lists.CITYSCAPES, read("train"), read("val"))


def pet(root: Path, names: tuple[str, ...]) -> MaskSet:
    """images/, annotations/trimaps/ and annotations/{trainval,test}.txt; the animal's pixels are its breed."""
    lines = {
        split: [line.split()[0] for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]
        for split, name in (("train", "trainval"), ("test", "test"))
        if (path := root / "annotations" / f"{name}.txt").is_file()
    }
    classes = names or tuple(sorted({s.rpartition("_")[0] for stems in lines.values() for s in stems}, key=str.lower))

    pictures, trimaps = (Pictures([root / place]) for place in ("images", "annotations/trimaps"))

    def read(split: str) -> list[MaskItem]:
        items = []
        for stem in lines.get(split, []):
            breed = stem.rpartition("_")[0]
            if breed in classes:  # trimap: 1 animal, 2 background, 3 border
                table = Table({0: IGNORE, 1: classes.index(breed), 2: IGNORE, 3: IGNORE})
                items.append(MaskItem(stem, pictures.find(f"{stem}.jpg"), trimaps.find(f"{stem}.png"), table))
        return items

    return MaskSet(classes, read("train"), read("test"))


def deepglobe(root: Path, names: tuple[str, ...]) -> MaskSet:
    """train/ and test/ (or valid/) of X_sat.jpg with X_mask.png in the published colours; without test masks
    every tenth image is a test image."""
    codes = masks.colours(class_lists.DEEPGLOBE_COLOURS, [(0, 0, 0)])
    table = Table(codes.index, masks.pure_rgb_codes)

    def read(split: str) -> list[MaskItem]:
        items = []
        for image in sorted(first(root, SPLITS[split][::-1]).glob("*_sat.jpg")):
            mask = image.with_name(image.name.replace("_sat.jpg", "_mask.png"))
            if mask.is_file():
                items.append(MaskItem(image.name, image, mask, table))
        return items

    train, test = read("train"), read("test")
    return MaskSet(class_lists.DEEPGLOBE, train, test) if test else MaskSet(
        class_lists.DEEPGLOBE, [x for i, x in enumerate(train) if i % 10 != 9], train[9::10]
    )  # fmt: skip


LAYOUTS: dict[str, Callable[[Path, tuple[str, ...]], MaskSet]] = {
    "folder": folder, "ade20k": ade20k, "voc": voc, "coco": coco, "cityscapes": cityscapes, "pet": pet,
    "deepglobe": deepglobe, "roboflow": lambda root, names: read_roboflow(root), "labelme": labelme,
}  # fmt: skip
NAMELESS = ("folder", "ade20k", "pet")  # kinds whose ids can be named by --data-classes


def published(learn: str, forget: str, retain: str, name: str, base: Sequence[str]) -> MaskSet:
    """The three folders of the published swaps, whose masks already hold logit rows (150.. for new classes).

    Args:
        learn: {train,test}/{images,annotations}; forget, retain: images/ and annotations_detectron2/ with
            training/ and validation/.
        name: voc, pet, coco or sat: which six classes are new.
        base: names of the old rows.

    Raises:
        UserError: unknown name, missing folder.
    """
    if name not in class_lists.LEARN_SETS:
        raise UserError(f"`--learnsetname` must be one of {', '.join(class_lists.LEARN_SETS)}, got {name!r}.")
    new = [c if c not in base else f"{c} ({name})" for c in class_lists.LEARN_SETS[name]]
    classes = (*base, *new)
    table = masks.plain(len(classes))

    def mask_name(stem: str) -> str:
        return stem.replace("_sat", "_mask") + ".png" if name == "sat" else stem + ".png"

    train, test = [], []
    for items, part in ((train, "train"), (test, "test")):
        items += pairs(_folder(learn) / part / "images", _folder(learn) / part / "annotations", table, mask_name)
    for root in (_folder(forget), _folder(retain)):
        for items, part in ((train, "training"), (test, "validation")):
            items += pairs(root / "images" / part, root / "annotations_detectron2" / part, table)
    return MaskSet(classes, train, test)


def _folder(text: str) -> Path:
    path = user_path(text)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}.")
    return path
