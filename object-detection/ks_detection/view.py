"""Flags that say how images are read: sizes, augmentation, which objects count."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError
from common.images import MAX_SIDE
from common.knobs import Checked, knob
from ks_detection.data import transforms

MANY = 1000  # sizes to draw from
RULES = ("ignore", "remove", "exclude")


@dataclass
class ImageConfig(Checked):
    """Images: which objects count, sizes and augmentation."""

    mixed: str = knob(
        "ignore",
        "what becomes of objects of other groups in an image: left out of the loss, treated as background (published), "
        "or the image is not used",
        RULES,
    )
    without: str = knob("", "training images that show an object of these classes are not used: a,b,c or @file")
    forget_part: str = knob(
        "all",
        "with --no-bound-per-item: reverse the whole loss (Knowledge Swapping) or only its class part, boxes being "
        "trained as usual (CL-DETR)",
        ["all", "class"],
    )
    augment: bool = knob(True, "DETR's random sizes and crops while training")
    flip: bool = knob(True, "mirror images are part of the augmentation (not for digits)")
    sizes: str = knob("480-800:32", "shorter sides to train with: from-to:step, or a list")
    longest: int = knob(1333, "longest side allowed, pixels", least=32, most=MAX_SIDE)
    before_crop: str = knob("400,500,600", "shorter sides before a random crop, pixels")
    crop: str = knob("384,600", "smallest and largest side of a random crop, pixels")
    test_size: int = knob(800, "shorter side when scoring, pixels", least=1, most=MAX_SIDE)
    eval_batch: int = knob(8, "images per batch when scoring, grouped by aspect ratio", least=1, most=65_536)
    keep_decoded: int = knob(512, "megabytes of decoded images kept in memory", least=0)
    learn_fraction: float = knob(1.0, "share of training images that a learn phase uses", above=0, most=1)
    forget_fraction: float = knob(1.0, "the same for classes to be forgotten", above=0, most=1)
    retain_fraction: float = knob(1.0, "the same for all other classes", above=0, most=1)
    workers: int = knob(0, "processes that prepare batches; 0 does it in this one", least=0, most=256)

    def recipe(self) -> transforms.Recipe:
        """The sizes as numbers. Raises UserError for text that holds none."""
        low, high = (numbers(self.crop, "--crop") * 2)[:2]
        if low > high:
            raise UserError(f"`--crop` takes the smallest side first, got {self.crop!r}.")
        sizes, before = numbers(self.sizes, "--sizes"), numbers(self.before_crop, "--before-crop")
        return transforms.Recipe(sizes, self.longest, before, (low, high), self.test_size, self.flip, self.augment)


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """(480, 512, ...) of "480-800:32" or "480,512"."""
    try:
        if "-" in text:
            span, _, step = text.partition(":")
            low, high = (int(part) for part in span.split("-"))
            found = range(low, high + 1, int(step or 1))
        else:
            found = [int(part) for part in text.split(",")]
        if (
            not found
            or not all(1 <= side <= MAX_SIDE for side in (found[0], found[-1], *found[:MANY]))
            or len(found) > MANY
        ):
            raise ValueError
        return tuple(found)
    except ValueError:
        raise UserError(f"`{flag}` takes pixels such as 480-800:32 or 400,500,600, got {text!r}.") from None
