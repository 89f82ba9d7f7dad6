"""What is wrong with images and masks, before they are trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from common.errors import UserError
from common.session import Problem
from ks_segmentation.data.masks import UnknownId
from ks_segmentation.data.scan import pixels_per_class
from ks_segmentation.data.sets import Item, MaskSet


def check(text: str, data: MaskSet) -> tuple[list[str], list[Problem]]:
    """(a table of images per class, problems): every image and every mask is read.

    Errors: an image or a mask that cannot be read, masks with an id outside the class list, an image and a mask of
    different sizes, a mask without any class, no images at all. Notes: a class that no training mask holds.
    """
    images: dict[str, Counter[int]] = {}
    pixels: Counter[int] = Counter()
    problems: list[Problem] = []
    for part, name in (("train", "training"), ("test", "test")):
        items = getattr(data, part)
        images[part], found, wrong = _read_all(items)
        pixels += found
        problems += wrong
        problems += [] if items else [Problem("no images", text, f"has no {name} images")]
    every = pixels.total() or 1
    lines = [f"{text}: {len(data.train)} training and {len(data.test)} test images, {len(data.classes)} classes"]
    lines.append(f"  {'class':<28}{'train images':>16}{'test images':>16}{'% of pixels':>14}")
    for row, name in enumerate(data.classes):
        train, test = (images[part][row] for part in ("train", "test"))
        lines.append(f"  {name:<28}{train:>16}{test:>16}{100 * pixels[row] / every:>14.2f}")
        if not train:
            problems.append(Problem("class without images", name, "is in no training mask", fatal=False))
    return lines, problems


def _read_all(items: Sequence[Item]) -> tuple[Counter[int], Counter[int], list[Problem]]:
    """(class index -> images, class index -> pixels, problems) of all items, each read in full."""
    images: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    problems: list[Problem] = []
    strange: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        try:
            item.pixels()
            counts = pixels_per_class(item)
        except UnknownId as error:
            strange[error.id].append(item)
            continue
        except UserError as error:
            problems.append(Problem("unreadable or unfitting", item.name, str(error)))
            continue
        if not counts:
            problems.append(Problem("mask without a class", item.name, "holds no class at all"))
        images.update(counts.keys())
        pixels.update(counts)
    for id, holders in sorted(strange.items()):
        text = f"holds the id {id}, which is not in the class list, as do {len(holders) - 1} more; is it ignore_index?"
        problems.append(Problem("unknown id", holders[0].name, text))
    return images, pixels, problems
