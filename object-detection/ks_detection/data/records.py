"""The one form that every data set is read into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from common.errors import UserError
from common.session import Problem


class Annotation(NamedTuple):
    """An annotated object. box: (left, top, right, bottom) in pixels; crowd: a region of many (COCO `iscrowd`)."""

    label: str
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass
class ImageRecord:
    """An image and what is on it.

    image: where it is not read from `path`, the image itself or a function that gives it.
    """

    name: str
    path: Path | None
    width: int
    height: int
    annotations: tuple[Annotation, ...] = ()
    image: Image.Image | Callable[[], Image.Image] | None = None

    def open(self) -> Image.Image:
        """The image in RGB. Raises UserError when the file is missing or damaged."""
        if self.image is not None:
            return self.image() if callable(self.image) else self.image
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise UserError(f"image {self.path} cannot be read ({error}); run check.py to list all problems.") from None


@dataclass
class DetectionSet:
    """Training and test images, class names in the data set's order, and its number of each class."""

    train: list[ImageRecord]
    test: list[ImageRecord]
    classes: list[str]
    ids: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def joined(self, other: DetectionSet) -> DetectionSet:
        """Both sets as one; classes of the same name are the same class."""
        classes = self.classes + [c for c in other.classes if c not in self.classes]
        return DetectionSet(
            self.train + other.train,
            self.test + other.test,
            classes,
            other.ids | self.ids,
            self.problems + other.problems,
        )


def find_box_problem(box: tuple[float, float, float, float], width: int, height: int) -> tuple[str, str, bool] | None:
    """(kind, text, fatal) if a box cannot be trained on; one pixel beyond the edge is rounding and is cut."""
    left, top, right, bottom = box
    shown = f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) in an image of {width}x{height} pixels"
    if any(value != value or abs(value) == float("inf") for value in box):
        return "not a number", shown, True
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        return "box outside", shown, True
    if right - left <= 0 or bottom - top <= 0:
        return "empty box", f"{shown} has no area and is left out", False
    return None


def clipped(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a box inside the image."""
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
