"""COCO average precision of any images and predictions, without files."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.domain import OVERLAP, Evaluation
from common.evaluation.spill import shares
from common.record import NOTHING


class Truth(NamedTuple):
    """An image's objects in pixels: (class name, (left, top, right, bottom), crowd)."""

    name: str
    width: int
    height: int
    annotations: list[tuple[str, tuple[float, float, float, float], bool]]

    def shows(self, classes: Sequence[str]) -> bool:
        """Whether an object of the classes (crowds aside) is on it."""
        return any(label in classes and not crowd for label, _, crowd in self.annotations)


class Found(NamedTuple):
    """An image's detections, best first: [N] scores, [N] class names, [N] boxes as corners in pixels."""

    scores: list[float]
    labels: list[str]
    boxes: list[list[float]]


class Scores(NamedTuple):
    """All in percent. ap, ap50, ap75: means over classes; per_class: AP@[.5:.95], per_class50: AP@.5, per_class75.

    curves: class -> precision at recall 0, 0.01, .. 1 and IoU 0.5 (101 values in 0..1).
    """

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, float]
    per_class50: dict[str, float]
    per_class75: dict[str, float]
    curves: dict[str, list[float]]

    def evaluation(self) -> Evaluation:
        """The same as the loop takes it."""
        figures = {"AP50": {"total": self.ap50, **self.per_class50}, "AP75": {"total": self.ap75, **self.per_class75}}
        return Evaluation({"total": self.ap, **self.per_class}, figures, self.curves)


def coco_scores(truths: Sequence[Truth], found: Sequence[Found], classes: Sequence[str]) -> Scores:
    """COCO's bbox scores over `classes`; detections and objects of other classes are not looked at.

    Area "all", 100 detections per image, IoU 0.50:0.05:0.95. A class without an object has no score.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = {name: i + 1 for i, name in enumerate(classes)}
    truth, detections = COCO(), []
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": t.width, "height": t.height} for i, t in enumerate(truths)],
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
        "annotations": _annotations(truths, numbers),
    }
    for i, record in enumerate(found):
        for score, label, (x0, y0, x1, y1) in zip(record.scores, record.labels, record.boxes, strict=True):
            if label in numbers:
                box = [x0, y0, x1 - x0, y1 - y0]
                detections.append({"image_id": i, "category_id": numbers[label], "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if not detections:
            return _nothing(truths, classes)
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation.eval["precision"][:, :, :, 0, -1], classes)


def called(
    truths: Sequence[Truth], found: Sequence[Found], classes: Sequence[str], threshold: float
) -> dict[str, dict[str, float]]:
    """Class -> how the surest detection that covers each of its objects (IoU at least 0.5) is called -> share of the
    objects, 0..1; NOTHING where none covers it with a score of at least `threshold`."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for truth, own in zip(truths, found, strict=True):
        shown = sum(score >= threshold for score in own.scores)  # best first
        boxes, labels = np.asarray(own.boxes[:shown]).reshape(-1, 4), [*own.labels[:shown], NOTHING]
        for name, box, crowd in truth.annotations:
            if name in counts and not crowd:
                covers = np.append(_overlaps(np.asarray(box), boxes) >= OVERLAP, True)
                counts[name][labels[int(covers.argmax())]] += 1
    return {name: shares(count) for name, count in counts.items() if count}


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[N] IoU of a box [4] with boxes [N, 4], corners in pixels."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    return shared / np.maximum((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared, 1e-9)


def _annotations(truths: Sequence[Truth], numbers: dict[str, int]) -> list[dict]:
    entries = []
    for i, record in enumerate(truths):
        for label, (x0, y0, x1, y1), crowd in record.annotations:
            if label in numbers:
                box = [x0, y0, x1 - x0, y1 - y0]
                entry = {"image_id": i, "category_id": numbers[label], "bbox": box, "iscrowd": int(crowd)}
                entries.append(entry | {"id": len(entries) + 1, "area": box[2] * box[3]})
    return entries


def _summary(precision: np.ndarray, classes: Sequence[str]) -> Scores:
    """precision: [10 IoUs, 101 recalls, classes], -1 where a class has no object."""

    def mean(values: np.ndarray) -> float:
        return float(100 * values[values > -1].mean()) if (values > -1).any() else float("nan")

    known = [k for k in range(len(classes)) if (precision[:, :, k] > -1).any()]
    return Scores(
        mean(precision), mean(precision[0]), mean(precision[5]),
        {classes[k]: mean(precision[:, :, k]) for k in known},
        {classes[k]: mean(precision[0, :, k]) for k in known},
        {classes[k]: mean(precision[5, :, k]) for k in known},
        {classes[k]: precision[0, :, k].tolist() for k in known},
    )  # fmt: skip


def _nothing(truths: Sequence[Truth], classes: Sequence[str]) -> Scores:
    shown = {label for t in truths for label, _, crowd in t.annotations if not crowd}
    zero = {name: 0.0 for name in classes if name in shown}
    total = 0.0 if zero else float("nan")
    return Scores(total, total, total, zero, dict(zero), dict(zero), {name: [0.0] * 101 for name in zero})
