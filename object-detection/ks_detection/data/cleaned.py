"""A cleaned copy of a detection data set, as COCO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.clean import Copies
from common.images import open_image
from common.record import write_json
from ks_detection.data.folders import load
from ks_detection.data.records import ImageRecord, image_problem


def fix(text: str, out: str) -> list[str]:
    """Writes annotations/instances_{train,val}.json beside train/ and val/. Lines that say what was done.

    Left out: unreadable and missing pictures, pictures of another size than stated, and what the reader leaves out of
    the annotations. Boxes that belong to the unturned picture of a file with an EXIF tag keep it unturned.

    Raises:
        UserError: `out` is there already, or there is no data set to read.
    """
    copies, data = Copies(out), load(text, strict=False)
    rows, left = {name: i for i, name in enumerate(data.classes, 1)}, 0
    for part, records in (("train", data.train), ("val", data.test)):
        images: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for record in records:
            path = _copied(copies, part, record)
            if path is None:
                left += 1
                continue
            images.append(
                {"id": len(images) + 1, "file_name": path.name, "width": record.width, "height": record.height}
            )
            entries += _entries(record, rows, len(images), len(entries))
        categories = [{"id": row, "name": name} for name, row in rows.items()]
        content = {"images": images, "annotations": entries, "categories": categories}
        write_json(Path(out) / f"annotations/instances_{part}.json", content)
    return [f"wrote {out} (COCO): {copies.rewritten} pictures rewritten as PNG, {left} left out, "
            f"{sum(p.fatal for p in data.problems)} errors in annotations left out"]  # fmt: skip


def _entries(record: ImageRecord, rows: dict[str, int], image: int, before: int) -> Sequence[dict[str, Any]]:
    found = []
    for number, a in enumerate(record.annotations, before + 1):
        box = [a.box[0], a.box[1], a.box[2] - a.box[0], a.box[3] - a.box[1]]
        found.append({"id": number, "image_id": image, "category_id": rows[a.label], "bbox": box, "area": box[2] * box[3],
                      "iscrowd": int(a.crowd)})  # fmt: skip
    return found


def _copied(copies: Copies, part: str, record: ImageRecord) -> Path | None:
    """Where the picture was written; None where there is none that fits its annotations."""
    if record.path is None:
        return copies.add(part, record.open(), record.name)
    if not record.path.is_file():
        return None
    problem = image_problem(record, lambda path: open_image(path).size)
    if problem is None:
        return copies.add(part, record.path, record.name)
    return None if problem.fatal else copies.add(part, record.path, record.name, record.open)
