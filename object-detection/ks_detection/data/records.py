"""The one form that every data set is read into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from common.errors import UserError
from common.images import ImageError, is_turned, open_image, probe, size_of
from common.session import Problem

CUT = "box cut"


class Annotation(NamedTuple):
    """An annotated object.

    box: (left, top, right, bottom) in pixels; crowd: a region of many (COCO `iscrowd`), scored as COCO does and not
    trained on; difficult: VOC's flag.
    """

    label: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    difficult: bool = False


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
        """The image in RGB, upright or as its boxes were drawn (see `image_problem`).

        Raises UserError when the file is missing or damaged.
        """
        if self.image is not None:
            return self.image() if callable(self.image) else self.image
        picture = open_image(self.path)
        if picture.size != (self.width, self.height) and picture.size == (self.height, self.width):
            return open_image(self.path, upright=False)
        return picture


@dataclass
class DetectionSet:
    """Training and test images, class names in the data set's order, and its number of each class.

    notes: lines on how it was read, where the data does not say.
    """

    train: list[ImageRecord]
    test: list[ImageRecord]
    classes: list[str]
    ids: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_parts(cls, train: DetectionSet, test: DetectionSet) -> DetectionSet:
        """Of two sets that hold training images alone."""
        whole = train.joined(replace(test, train=[], test=test.train))
        if whole.ids:
            return replace(whole, classes=sorted(whole.ids, key=whole.ids.__getitem__))
        return whole if train.classes == test.classes else replace(whole, classes=sorted(whole.classes))

    def joined(self, other: DetectionSet) -> DetectionSet:
        """Both sets as one; classes of the same name are the same class."""
        known = set(self.classes)
        classes = self.classes + [c for c in other.classes if c not in known]
        return DetectionSet(
            self.train + other.train,
            self.test + other.test,
            classes,
            other.ids | self.ids,
            self.problems + other.problems,
            self.notes + other.notes,
        )

    def scored_as_voc(self) -> DetectionSet:
        """With the difficult objects of test images as regions that no answer is judged on, which is VOC's rule."""
        if not any(a.difficult for record in self.test for a in record.annotations):
            return self
        test = [replace(r, annotations=tuple(a._replace(crowd=a.crowd or a.difficult) for a in r.annotations))
                for r in self.test]  # fmt: skip
        return replace(self, test=test, notes=[*self.notes, "objects marked difficult train and are not scored (VOC)"])


def without(records: Sequence[ImageRecord], classes: Collection[str]) -> list[ImageRecord]:
    """Those that show nothing of the classes."""
    return [record for record in records if not any(a.label in classes for a in record.annotations)]


def image_problem(record: ImageRecord, read: Callable[[Path], tuple[int, int]] = probe) -> Problem | None:
    """What is wrong with an image's file: it cannot be read, or its boxes belong to another size.

    Boxes belong to the upright picture, as annotation tools show it; but where the stated size is that of the pixels as
    they lie in a file that an EXIF tag turns, to these, and the picture is not turned then.

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
    if size == stated[::-1] and is_turned(record.path):
        return Problem(
            "turned", str(record.path), "is read as its pixels lie: its boxes were drawn so, not upright", False
        )
    return Problem("wrong size", str(record.path), text)


def told(problems: list[Problem], command: str = "check.py") -> None:
    """Raises UserError for the first of the problems that would spoil a run, if there are such."""
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        first, more = fatal[0], f" ({len(fatal) - 1} more problems)" if len(fatal) > 1 else ""
        raise UserError(f"{first.kind}: {first.where}: {first.text}{more}; `{command}` lists all.")


def find_box_problem(box: tuple[float, float, float, float], width: int, height: int) -> tuple[str, str, bool] | None:
    """(kind, text, fatal) of what is wrong with a box; one pixel beyond the edge is rounding and is cut.

    Only a box of the kind `CUT`, most of which is inside, can be used.
    """
    left, top, right, bottom = box
    shown = f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) in an image of {width}x{height} pixels"
    if any(value != value or abs(value) == float("inf") for value in box):
        return "not a number", shown, True
    whole, inside = _area(box), _area(clipped(box, width, height))
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        if whole > 0 and inside >= whole / 2:
            return CUT, f"{shown} is cut at the edge", False
        return "box outside", shown, True
    if inside <= 0:
        return "empty box", f"{shown} has no area and is left out", False
    return None


def _area(box: tuple[float, float, float, float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


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
    difficult: bool = False


def assembled(
    name: str,
    path: Path | None,
    size: tuple[int, int] | None,
    objects: Sequence[Raw],
    problems: list[Problem],
    image: Callable[[], Image.Image] | None = None,
) -> ImageRecord:
    """The record of an image with those of its objects that can be trained on; the rest is added to `problems`.

    Args:
        path: None for one that `image` gives.
        size: (width, height) as the annotations state it; None reads it from the picture.
    """
    if path is None:
        assert size is not None
    elif not path.is_file():
        problems.append(Problem("missing image", name, f"{path} does not exist"))
    elif size is None:
        try:
            size = size_of(path)
        except ImageError as error:
            problems.append(Problem("corrupt image", str(path), error.reason))
    if size is None:
        return ImageRecord(name, path, 1, 1)
    kept: dict[Annotation, None] = {}
    for thing in objects:
        annotation = Annotation(thing.label, clipped(thing.box, *size), thing.crowd, thing.difficult)
        if found := find_box_problem(thing.box, *size):
            problems.append(Problem(found[0], thing.where, *found[1:]))
        if found and found[0] != CUT:
            continue
        if annotation in kept:
            text = f"the same {thing.label} box stands twice in one image"
            problems.append(Problem("duplicate", thing.where, text, False))
        else:
            kept[annotation] = None
    if not kept:
        problems.append(Problem("no objects", name, "the image has no annotation", False))
    return ImageRecord(name, path, *size, tuple(kept), image)


def split(data: DetectionSet) -> DetectionSet:
    """The set with a fifth of its training images, which are all it has, as test images.

    Of the images of each class in order (of an image with several, its rarest) the second is a test image, and every
    fifth from there, so that a class of two images has one.

    Raises:
        UserError: one image.
    """
    if len(data.train) < 2:
        raise UserError("the data holds one image and no test image; at least two are needed.")
    counts = Counter(label for record in data.train for label in {a.label for a in record.annotations})
    seen: Counter[str] = Counter()
    parts: dict[bool, list[ImageRecord]] = {True: [], False: []}
    for record in data.train:
        rarest = min((a.label for a in record.annotations), key=lambda label: (counts[label], label), default="")
        parts[seen[rarest] % 5 == 1].append(record)
        seen[rarest] += 1
    if not parts[True]:
        parts[True].append(parts[False].pop())
    note = f"no split is given: every fifth image of each class tests ({len(parts[True])} of {len(data.train)})"
    return replace(data, train=parts[False], test=parts[True], notes=[*data.notes, note])
