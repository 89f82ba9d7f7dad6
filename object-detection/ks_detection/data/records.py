"""The one form that every data set is read into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from common.errors import UserError
from common.images import ImageError, open_image, probe, size_of
from common.session import Problem

T = TypeVar("T")


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
        """The image in upright RGB. Raises UserError when the file is missing or damaged."""
        if self.image is not None:
            return self.image() if callable(self.image) else self.image
        return open_image(self.path)


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


def image_problem(record: ImageRecord, read: Callable[[Path], tuple[int, int]] = probe) -> Problem | None:
    """What is wrong with an image's file: it cannot be read, or its boxes belong to another size.

    Boxes belong to the upright picture, as annotation tools show it.

    Args:
        read: gives (width, height) of the upright picture; raises ImageError.
    """
    if record.path is None or not record.path.is_file():
        return None  # made in memory, or reported as missing already
    try:
        size = read(record.path)
    except ImageError as error:
        return Problem("corrupt image", str(record.path), error.reason)
    stated = (record.width, record.height)
    if size == stated:
        return None
    text = f"is {size[0]}x{size[1]} pixels, the annotations say {stated[0]}x{stated[1]}"
    if size == stated[::-1]:
        text += "; if its EXIF tag turns it, write the picture upright without the tag, or its boxes and size turned"
    return Problem("wrong size", str(record.path), text)


def told(problems: list[Problem], command: str = "check.py") -> None:
    """Raises UserError for the first of the problems that would spoil a run, if there are such."""
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        first, more = fatal[0], f" ({len(fatal) - 1} more problems)" if len(fatal) > 1 else ""
        raise UserError(f"{first.kind}: {first.where}: {first.text}{more}; `{command}` lists all.")


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


class Raw(NamedTuple):
    """An object as a file states it; where: how to call it in a problem."""

    label: str
    box: tuple[float, float, float, float]
    where: str
    crowd: bool = False


def assembled(
    name: str, path: Path, size: tuple[int, int] | None, objects: Sequence[Raw], problems: list[Problem]
) -> ImageRecord:
    """The record of an image with those of its objects that can be trained on; the rest is added to `problems`.

    Args:
        size: (width, height) as the annotations state it; None reads it from the picture.
    """
    if not path.is_file():
        problems.append(Problem("missing image", name, f"{path} does not exist"))
    elif size is None:
        try:
            size = size_of(path)
        except ImageError as error:
            problems.append(Problem("corrupt image", str(path), error.reason))
    if size is None:
        return ImageRecord(name, path, 1, 1)
    kept: list[Annotation] = []
    for thing in objects:
        annotation = Annotation(thing.label, clipped(thing.box, *size), thing.crowd)
        if found := find_box_problem(thing.box, *size):
            problems.append(Problem(found[0], thing.where, *found[1:]))
        elif annotation in kept:
            text = f"the same {thing.label} box stands twice in one image"
            problems.append(Problem("duplicate", thing.where, text, False))
        else:
            kept.append(annotation)
    if not kept:
        problems.append(Problem("no objects", name, "the image has no annotation", False))
    return ImageRecord(name, path, *size, tuple(kept))


def every_fifth(names: Sequence[T], training: bool) -> list[T]:
    """The training or test share of what has no lists: every fifth tests."""
    return [name for i, name in enumerate(names) if (i % 5 == 4) != training]
