"""From the text of a --data flag to a data set: which kind of folder is this?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.coco import files_of_parts, images_of, lone_file
from common.errors import UserError
from common.pictures import IMAGES, TEST, Pictures, first_folder, is_hidden, parts_of, visible
from common.session import Problem
from ks_detection.data.coco import read_coco
from ks_detection.data.hugging_face import is_saved, read_saved
from ks_detection.data.records import DetectionSet, ImageRecord, split, told
from ks_detection.data.rows import METADATA, Table, read_csv, read_metadata
from ks_detection.data.scenes import digit_scenes
from ks_detection.data.voc import read_files, read_voc
from ks_detection.data.yolo import LISTS, class_list, read_yolo


def load(text: str, strict: bool = True) -> DetectionSet:
    """The data set named by a flag: `digits`, or folders of any known layout, several joined by commas.

    Args:
        text: `digits` makes scenes of handwritten digits; `digits:0123` of these digits alone; hf:FOLDER is what
            `save_to_disk` of Hugging Face `datasets` wrote.
        strict: stop at the first problem that would spoil a run; otherwise collect all in `problems`.

    Raises:
        UserError: no such folder, no known layout, or a problem found.
    """
    sets = [_told_of(part.strip()) for part in text.split(",") if part.strip()]
    if not sets:
        raise UserError("--data is empty; name a folder, or digits.")
    whole = sets[0]
    for other in sets[1:]:
        whole = whole.joined(other)
    if strict:
        told(whole.problems, f"check.py {text}")
    return whole


def _told_of(text: str) -> DetectionSet:
    found = _load(text).scored_as_voc()
    return replace(found, notes=[f"{text}: {note}" for note in found.notes])


def _load(text: str) -> DetectionSet:
    if text == "digits" or text.startswith("digits:"):
        return digit_scenes(text.partition(":")[2])
    folder = Path(text.removeprefix("hf:")).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data {text}: no such folder.")
    for read in (_saved, _coco, _voc, _yolo, _by_parts, _flat, _inner):
        if (found := read(folder)) is not None:
            return found
    raise UserError(
        f"{folder} has no layout known here: COCO (annotations/instances_train2017.json beside train2017/, or "
        "instances_train.json beside images/), VOC (Annotations/, JPEGImages/), YOLO (images/train, labels/train), or "
        "folders train/ and valid/, or one folder, of images beside their .xml, .txt, .csv, metadata.jsonl or COCO .json."
    )


def _saved(folder: Path) -> DetectionSet | None:
    return read_saved(folder) if is_saved(folder) else None


def _coco(folder: Path) -> DetectionSet | None:
    """Annotation files that name their part, beside folders of images; of one part alone a fifth tests."""
    files = files_of_parts(folder)
    pair = parts_of(files)
    if pair:
        return DetectionSet.of_parts(*(read_coco(files[part], images_of(part, files[part], folder)) for part in pair))
    if not files or parts_of([place.name for place in folder.iterdir() if place.is_dir()]):
        return None
    (part, file), *_ = files.items()
    return split(read_coco(file, images_of(part, file, folder)))


def _voc(folder: Path) -> DetectionSet | None:
    return read_voc(folder) if visible(folder / "Annotations", "*.xml") else None


def _yolo(folder: Path) -> DetectionSet | None:
    """images/{train,val} and labels/{train,val}, or the two without parts; labels are .txt, or VOC's .xml."""
    images, labels = (first_folder(folder, [name]) for name in ("images", "labels"))
    if not (images and labels):
        return None
    pair = parts_of([place.name for place in images.iterdir() if place.is_dir()])
    read = _xml if visible(labels, "*.xml") and not _label_files(labels) else _txt(folder, labels)
    if pair is None:
        return split(read(images, labels))
    return DetectionSet.of_parts(*(read(images / part, labels / part) for part in pair))


def _label_files(folder: Path) -> list[Path]:
    """YOLO's, without lists of classes and notes to the reader."""
    every = visible(folder, "*.txt")
    return [file for file in every if file.name not in LISTS and not file.name.lower().startswith("readme")]


def _xml(images: Path, labels: Path) -> DetectionSet:
    return read_files(visible(labels, "*.xml"), Pictures([images]), all_of_them=True)


def _txt(folder: Path, labels: Path) -> Callable[[Path, Path], DetectionSet]:
    return partial(read_yolo, names=class_list(folder, labels, labels / "train"))


def _by_parts(folder: Path) -> DetectionSet | None:
    """train/ and valid/ (or val/, test/, validation/), each with annotations of its own: Roboflow's exports."""
    places = [place.name for place in folder.iterdir() if place.is_dir()]
    if pair := parts_of(places):
        found = [_beside(folder / part, folder) for part in pair]
        if found[0] and found[1]:
            whole = DetectionSet.of_parts(found[0], found[1])
            spare = [word for word in TEST if word in places and word != pair[1]]
            whole.notes.extend(f"{word}/ is not used: {pair[1]}/ tests" for word in spare)
            return whole
    if pair := parts_of([file.stem for file in folder.glob("*.csv")]):
        return DetectionSet.of_parts(*(_table(read_csv, folder / f"{part}.csv", folder) for part in pair))
    return None


def _flat(folder: Path) -> DetectionSet | None:
    """Images with their annotations in one folder, or in folders below it, without parts."""
    found = _beside(folder, folder)
    return None if found is None else split(found)


def _inner(folder: Path) -> DetectionSet | None:
    """The only folder in it: what unpacking leaves, or an export of training images alone."""
    inner = [place for place in folder.iterdir() if place.is_dir() and not is_hidden(place.name)]
    return _load(str(inner[0])) if len(inner) == 1 else None


def _beside(folder: Path, root: Path) -> DetectionSet | None:
    """All images of a folder as training images, read from the annotations in it; None where there are none."""
    pictures = Pictures([first_folder(folder, IMAGES) or folder])
    if listing := lone_file(folder):
        return read_coco(listing, pictures)
    if files := visible(folder, "*.xml"):
        return read_files(files, pictures, all_of_them=True)
    for read, pattern in ((read_csv, "*.csv"), (_metadata_of(root), METADATA)):
        if len(tables := [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".")]) == 1:
            return _table(read, tables[0], folder)
    images, labels = (folder / "images", folder / "labels") if (folder / "labels").is_dir() else (folder, folder)
    if _label_files(labels):
        try:
            names = class_list(folder, labels, root)
        except UserError:
            return None
        return read_yolo(images, labels, names)
    return None


def _metadata_of(root: Path) -> Callable[[Path, list[Problem]], Table]:
    def read(file: Path, problems: list[Problem]) -> Table:
        try:
            names = class_list(root)
        except UserError:
            names = []
        return read_metadata(file, names, problems)

    return read


def _table(read: Callable[[Path, list[Problem]], Table], file: Path, folder: Path) -> DetectionSet:
    problems: list[Problem] = []
    table = read(file, problems)
    below = [place for place in (folder / file.stem,) if place.is_dir()]
    records = table.records(Pictures([*below, folder]), problems)
    return DetectionSet(records, [], table.classes(), problems=problems)


def with_classes(records: list[ImageRecord], classes: set[str]) -> list[ImageRecord]:
    """The images that show at least one object (crowds aside) of the classes."""
    return [p for p in records if any(a.label in classes and not a.crowd for a in p.annotations)]
