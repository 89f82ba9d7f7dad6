"""COCO JSON files; category ids may be sparse and stay what they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from common.errors import UserError
from common.session import Problem
from ks_detection.data.records import Annotation, ImageRecord, clipped, find_box_problem


def read_coco(file: Path, images: Path) -> tuple[list[ImageRecord], dict[str, int], list[Problem]]:
    """(images, class name -> category id, problems) of one annotation file.

    Args:
        file: `instances_*.json`; images: the folder that its file names are relative to.

    Raises:
        UserError: the file is missing or not COCO JSON.
    """
    data = _read(file)
    problems = _duplicates(file, data)
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    annotations: dict[int, list[Annotation]] = {image["id"]: [] for image in data["images"]}
    sizes = {image["id"]: (int(image["width"]), int(image["height"])) for image in data["images"]}
    for entry in data["annotations"]:
        where = f"{file.name}, annotation {entry.get('id', '?')}"
        if entry.get("image_id") not in annotations:
            problems.append(Problem("unknown image", where, f"image_id {entry.get('image_id')} is not in `images`"))
        elif entry.get("category_id") not in names:
            text = f"category_id {entry.get('category_id')} is not in `categories`"
            problems.append(Problem("unknown category", where, text))
        else:
            _add(annotations[entry["image_id"]], entry, names, sizes[entry["image_id"]], where, problems)
    records = []
    for image in data["images"]:
        path = images / image["file_name"]
        if not path.is_file():
            problems.append(Problem("missing image", file.name, f"{path} does not exist"))
        if not annotations[image["id"]]:
            problems.append(Problem("no objects", image["file_name"], "the image has no annotation", False))
        records.append(ImageRecord(str(image["file_name"]), path, *sizes[image["id"]], tuple(annotations[image["id"]])))
    return records, {name: number for number, name in names.items()}, problems


def _add(
    annotations: list[Annotation], entry: dict, names: dict, size: tuple[int, int], where: str, problems: list
) -> None:
    left, top, width, height = (float(value) for value in entry["bbox"])
    box = (left, top, left + width, top + height)
    found = find_box_problem(box, *size)
    if found:
        problems.append(Problem(found[0], where, *found[1:]))
        return
    crowd = bool(entry.get("iscrowd", 0))
    if crowd:
        problems.append(Problem("crowd", where, "a crowd region: scored as COCO does, not trained on", False))
    annotation = Annotation(names[entry["category_id"]], clipped(box, *size), crowd)
    if annotation in annotations:
        problems.append(
            Problem("duplicate", where, f"the same {annotation.label} box stands twice in one image", False)
        )
        return
    annotations.append(annotation)


def _read(file: Path) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}).") from None
    if not isinstance(data, dict) or not all(
        isinstance(data.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise UserError(f"{file} is not COCO: it needs the lists `images`, `annotations` and `categories`.")
    for part, keys in (
        ("images", ("id", "file_name", "width", "height")),
        ("annotations", ("bbox",)),
        ("categories", ("id", "name")),
    ):
        for entry in data[part]:
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking or (part == "annotations" and len(entry["bbox"]) != 4):
                raise UserError(
                    f"{file}: an entry of `{part}` has no good {lacking[0] if lacking else 'bbox'!r}: {str(entry)[:80]}."
                )
    return data


def _duplicates(file: Path, data: dict) -> list[Problem]:
    problems = []
    for part, key in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        counts = Counter(entry[key] for entry in data[part])
        problems += [
            Problem("duplicate", file.name, f"{key} {value!r} stands {count} times in `{part}`")
            for value, count in counts.items()
            if count > 1
        ]
    return problems
