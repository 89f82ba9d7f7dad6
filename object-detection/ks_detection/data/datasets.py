"""Dataset objects from Python as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image

from common.domain import train_and_test
from common.errors import UserError
from common.images import open_image
from ks_detection.data.records import CUT, Annotation, DetectionSet, ImageRecord, clipped, find_box_problem


def from_datasets(data: Any, names: Sequence[str]) -> DetectionSet:
    """The data set of (train, test), two torch Datasets of (image, {"boxes": [N, 4], "labels": [N]}).

    Boxes are (left, top, right, bottom) in pixels. Images are PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W]
    (uint8, or float in 0..1). Each item is read once here and again when it is used; it must be the same every time.

    Args:
        names: of the labels, in order; by default the Datasets' own `classes`.

    Raises:
        UserError: no pair, an item of another form, a label without a name, or a box outside its image.
    """
    *pair, classes = train_and_test(data, names)
    train, test = (
        [_record(dataset, f"{part}_{i:06d}", i, classes) for i in range(len(dataset))]
        for part, dataset in zip(("train", "test"), pair, strict=True)
    )
    return DetectionSet(train, test, classes)


def _record(dataset: Any, name: str, index: int, classes: Sequence[str]) -> ImageRecord:
    try:
        image, target = dataset[index]
        labels = [int(label) for label in target["labels"]]
        boxes = torch.as_tensor(target["boxes"]).reshape(len(labels), 4).tolist()
        annotations = [Annotation(label, tuple(map(float, box))) for box, label in zip(boxes, labels, strict=True)]
    except (TypeError, KeyError, IndexError, ValueError, RuntimeError):
        raise UserError(f'{name} is no (image, {{"boxes": [N, 4], "labels": [N]}}).') from None
    image = open_image(image, name)
    kept = []
    for annotation in annotations:
        if not 0 <= annotation.label < len(classes):
            raise UserError(
                f"label {annotation.label} has no name; name all labels, in order, with data_classes=[...]."
            )
        problem = find_box_problem(annotation.box, *image.size)
        if problem and problem[2]:
            raise UserError(f"{problem[0]}: {name}: {problem[1]}.")
        if problem is None or problem[0] == CUT:
            kept.append(Annotation(classes[annotation.label], clipped(annotation.box, *image.size)))
    return ImageRecord(name, None, *image.size, tuple(kept), partial(_open, dataset, index, name))


def _open(dataset: Any, index: int, name: str) -> Image.Image:
    return open_image(dataset[index][0], name)
