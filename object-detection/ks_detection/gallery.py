"""Images with boxes drawn in, for the report and for predict.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.domain import OVERLAP, GalleryItem
from common.images import png
from ks_detection.data.records import ImageRecord

THRESHOLD = 0.3  # detections below are not shown
COLORS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990")
SIDE = 256  # pixels of the longer side in the report


def draw(image: Image.Image, found: dict[str, Tensor], names: tuple[str, ...], side: int = 0) -> Image.Image:
    """A copy with a frame and a name per detection; at most `side` pixels long where that is not 0, small ones enlarged."""
    scale = side / max(image.size) if side else 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.BICUBIC) if side else image.copy()
    pen, letters = ImageDraw.Draw(canvas), min(max(max(size) // 16, 11), 24)
    for score, label, box in zip(*(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True):
        color = COLORS[label % len(COLORS)]
        left, top, right, bottom = (value * scale for value in box)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=2)
        text = f"{names[label]}: {100 * score:.0f} %"
        width = pen.textlength(text, font_size=letters)
        place = max(0, min(left, size[0] - width)), max(0, top - letters)
        pen.rectangle(pen.textbbox(place, text, font_size=letters), fill=color)
        pen.text(place, text, fill="black", font_size=letters)
    return canvas


def item(record: ImageRecord, found: dict[str, Tensor], names: tuple[str, ...], wanted: frozenset[str]) -> GalleryItem:
    """What the report shows of one image; `wanted` are the classes that it stands for."""
    picture = png(draw(record.open(), found, names, SIDE))
    truth = ", ".join(sorted(t.label for t in record.annotations if t.label in wanted))
    answers = [names[label] for label in found["labels"].tolist()]
    drawn = f"none of these; drawn: {', '.join(sorted(set(answers)))}" if answers else "nothing found"
    answer = ", ".join(sorted(name for name in answers if name in wanted)) or drawn
    name = f"{record.name} ({truth})"  # an image may stand for two groups
    return GalleryItem(name, picture, truth, answer, truth == answer)


def surest(covers: Tensor, scores: Tensor) -> Tensor:
    """[T] the prediction that covers each object with the largest of [P] scores; of covers [T, P] the best where none does."""
    return torch.where(covers >= OVERLAP, 1 + scores, covers).argmax(1)


def sighting(
    record: ImageRecord, truths: Sequence[Any], best: dict[str, Tensor], covers: Sequence[float], names: tuple[str, ...]
) -> GalleryItem:  # fmt: skip
    """An image with the surest detection that covers each true object. best: scores, labels and boxes, one per object."""
    picture = png(draw(record.open(), best, names, SIDE))
    called = [names[label] for label in best["labels"].tolist()]
    words = [
        f"{truth.label} is called {name} ({100 * score:.0f} %), IoU {cover:.2f}"
        for truth, name, score, cover in zip(truths, called, best["scores"].tolist(), covers, strict=True)
    ]
    truth = ", ".join(t.label for t in truths)
    right = all(t.label == name for t, name in zip(truths, called, strict=True))
    return GalleryItem(record.name, picture, truth, "; ".join(words), right)
