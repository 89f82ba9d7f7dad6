"""From the text of a --data flag to a data set: which kind of folder is this?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from common.session import Problem
from ks_detection.data.coco import read_coco
from ks_detection.data.records import DetectionSet, ImageRecord, every_fifth, told
from ks_detection.data.rows import METADATA, Table, read_csv, read_metadata
from ks_detection.data.scenes import digit_scenes
from ks_detection.data.voc import read_files, read_voc
from ks_detection.data.yolo import class_list, read_yolo

# annotation file, image folder, for training and for testing
COCO_LAYOUTS = (
    ("annotations/instances_{}2017.json", "{}2017"),
    ("annotations/instances_{}.json", "{}"),
    ("annotations/instances_{}.json", "images"),
    ("instances_{}.json", "images"),
    ("{}/_annotations.coco.json", "{}"),
)
PARTS = (("train", "val"), ("train", "valid"), ("train", "validation"), ("train", "test"))
NAMES = ("data.yaml", "classes.txt")


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
    return _by_parts(folder) or _flat(folder) or _unknown(folder)


def _unknown(folder: Path) -> DetectionSet:
    raise UserError(
        f"{folder} has no layout known here: COCO (annotations/instances_train2017.json beside train2017/, or "
        "instances_train.json beside images/), VOC (Annotations/, JPEGImages/), YOLO (images/train, labels/train), or "
        "folders train/ and valid/, or one folder, of images beside their .xml, .txt, .csv, metadata.jsonl or COCO .json."
    )


def _by_parts(folder: Path) -> DetectionSet | None:
    """train/ and valid/ (or val/, test/, validation/), each with annotations of its own: Roboflow's exports."""
    for names in PARTS:
        train, test = (folder / name for name in names)
        if train.is_dir() and test.is_dir():
            found = [_beside(part, folder) for part in (train, test)]
            if all(found):
                return _joined(*found)
            break
    tables = [[folder / f"{name}.csv" for name in names] for names in PARTS]
    for pair in tables:
        if all(file.is_file() for file in pair):
            return _joined(*(_table(read_csv, file, folder) for file in pair))
    return None


def _flat(folder: Path) -> DetectionSet | None:
    """One folder of images with their annotations; every fifth image tests."""
    found = _beside(folder, folder)
    if found is None or len(found.train) < 2:
        return None
    test = every_fifth(found.train, False) or found.train[-1:]
    held = {id(record) for record in test}
    return replace(found, train=[record for record in found.train if id(record) not in held], test=test)


def _joined(train: DetectionSet, test: DetectionSet) -> DetectionSet:
    whole = train.joined(replace(test, train=[], test=test.train))
    return (
        whole
        if train.ids
        else replace(whole, classes=train.classes if train.classes == test.classes else sorted(whole.classes))
    )


def _beside(folder: Path, root: Path) -> DetectionSet | None:
    """All images of a folder as training images, read from the annotations in it; None where there are none."""
    listing = [
        file for place in (folder, folder / "annotations") if place.is_dir() for file in sorted(place.glob("*.json"))
    ]
    listing = [file for file in listing if file.name not in ("data.json", "package.json")]
    if len(listing) == 1:
        records, ids, problems = read_coco(listing[0], folder / "images" if (folder / "images").is_dir() else folder)
        return DetectionSet(records, [], sorted(ids, key=ids.get), ids, problems)
    places = [folder, *(folder / name for name in ("annotations", "Annotations", "labels"))]
    if files := next((found for place in places if (found := sorted(place.glob("*.xml")))), []):
        records, names, problems = read_files(files, folder / "images" if (folder / "images").is_dir() else folder)
        return DetectionSet(records, [], names, problems=problems)
    for read, pattern in ((read_csv, "*.csv"), (_metadata_of(root), METADATA)):
        if len(tables := sorted(folder.glob(pattern))) == 1:
            return _table(read, tables[0], folder)
    pair = (folder / "images", folder / "labels") if (folder / "labels").is_dir() else (folder, folder)
    if any(p for p in pair[1].glob("*.txt") if p.name != "classes.txt"):
        owner = next((p for p in (folder, root) if any((p / name).is_file() for name in NAMES)), None)
        if owner is not None:
            names = class_list(owner)
            records, problems = read_yolo(*pair, names)
            return DetectionSet(records, [], names, problems=problems)
    return None


def _metadata_of(root: Path) -> Callable[[Path, list[Problem]], Table]:
    names = class_list(root) if any((root / name).is_file() for name in NAMES) else []
    return lambda file, problems: read_metadata(file, names, problems)


def _table(read: Callable[[Path, list[Problem]], Table], file: Path, folder: Path) -> DetectionSet:
    problems: list[Problem] = []
    table = read(file, problems)
    records = table.records([folder, folder / "images", folder / file.stem], problems)
    return DetectionSet(records, [], table.classes(), problems=problems)


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
    (train_records, problems), (test_records, more) = (
        read_yolo(folder / "images" / part, folder / "labels" / part, names) for part in ("train", test)
    )
    return DetectionSet(train_records, test_records, names, problems=problems + more)


def with_classes(records: list[ImageRecord], classes: set[str]) -> list[ImageRecord]:
    """The images that show at least one object (crowds aside) of the classes."""
    return [p for p in records if any(a.label in classes and not a.crowd for a in p.annotations)]
