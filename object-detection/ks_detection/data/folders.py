"""From the text of a --data flag to a data set: which kind of folder is this?"""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from ks_detection.data.coco import read_coco
from ks_detection.data.records import DetectionSet, ImageRecord, told
from ks_detection.data.scenes import digit_scenes
from ks_detection.data.voc import read_voc
from ks_detection.data.yolo import class_list, read_yolo

# annotation file, image folder, for training and for testing
COCO_LAYOUTS = (
    ("annotations/instances_{}2017.json", "{}2017"),
    ("annotations/instances_{}.json", "{}"),
    ("annotations/instances_{}.json", "images"),
    ("instances_{}.json", "images"),
    ("{}/_annotations.coco.json", "{}"),
)
PARTS = (("train", "val"), ("train", "valid"), ("train", "test"))


def load(text: str, strict: bool = True) -> DetectionSet:
    """The data set named by a flag: `digits`, or folders of COCO, VOC or YOLO form, several joined by commas.

    Args:
        text: `digits` makes scenes of handwritten digits; `digits:0123` of these digits alone.
        strict: stop at the first problem that would spoil a run; otherwise collect all in `problems`.

    Raises:
        UserError: no such folder, no known layout, or a problem found.
    """
    sets = [_load(part.strip()) for part in text.split(",") if part.strip()]
    if not sets:
        raise UserError("--data is empty; name a folder, or digits.")
    whole = sets[0]
    for other in sets[1:]:
        whole = whole.joined(other)
    if strict:
        told(whole.problems, f"check.py {text}")
    return whole


def _load(text: str) -> DetectionSet:
    if text == "digits" or text.startswith("digits:"):
        return digit_scenes(text.partition(":")[2])
    folder = Path(text)
    if not folder.is_dir():
        raise UserError(f"--data {text}: no such folder.")
    for file, images in COCO_LAYOUTS:
        for train, test in PARTS:
            if (folder / file.format(train)).is_file() and (folder / file.format(test)).is_file():
                parts = [(folder / file.format(part), folder / images.format(part)) for part in (train, test)]
                if all(place.is_dir() for _, place in parts):
                    return _coco(*parts)
    if (folder / "Annotations").is_dir():
        return _voc(folder)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return _yolo(folder)
    raise UserError(
        f"{folder} has no layout known here: COCO (annotations/instances_train2017.json beside train2017/, or "
        "instances_train.json beside images/), VOC (Annotations/, JPEGImages/) or YOLO (images/train, labels/train)."
    )


def _coco(train: tuple[Path, Path], test: tuple[Path, Path]) -> DetectionSet:
    train_records, ids, problems = read_coco(*train)
    test_records, test_ids, more = read_coco(*test)
    ids = test_ids | ids
    return DetectionSet(train_records, test_records, sorted(ids, key=ids.get), ids, problems + more)


def _voc(folder: Path) -> DetectionSet:
    train, names, problems = read_voc(folder, "train", True)
    test, more_names, more = read_voc(folder, "val", False)
    return DetectionSet(train, test, sorted({*names, *more_names}), problems=problems + more)


def _yolo(folder: Path) -> DetectionSet:
    names = class_list(folder)
    test = next((part for part in ("val", "valid", "test") if (folder / "images" / part).is_dir()), None)
    if test is None or not (folder / "images" / "train").is_dir():
        raise UserError(f"{folder} needs images/train and images/val.")
    (train_records, problems), (test_records, more) = (read_yolo(folder, part, names) for part in ("train", test))
    return DetectionSet(train_records, test_records, names, problems=problems + more)


def with_classes(records: list[ImageRecord], classes: set[str]) -> list[ImageRecord]:
    """The images that show at least one object (crowds aside) of the classes."""
    return [p for p in records if any(a.label in classes and not a.crowd for a in p.annotations)]
