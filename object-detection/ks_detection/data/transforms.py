"""DETR's augmentation, with boxes, on torchvision's v2 transforms; a function of the image and a seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.lazy import Module

tv_tensors, v2 = Module("torchvision.tv_tensors"), Module("torchvision.transforms.v2")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, for values in 0..1


@dataclass(frozen=True)
class Recipe:
    """Sizes in pixels: shorter sides to train with, longest side allowed, sizes before a crop, crop range.

    Source: DETR, arXiv:2005.12872, appendix A.4.
    """

    sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    longest: int = 1333
    before_crop: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    test_size: int = 800
    flip: bool = True
    augment: bool = True


def train_transform(recipe: Recipe) -> v2.Compose:
    """Mirror image, then either a resize or a resize, a crop and a resize."""
    from ks_detection.data.random_crop import RandomSizeCrop, ShortestSize  # their base classes are torchvision's

    resize = ShortestSize(list(recipe.sizes), recipe.longest, antialias=True)
    cropped = v2.Compose([ShortestSize(list(recipe.before_crop), antialias=True), RandomSizeCrop(*recipe.crop), resize])
    steps = [v2.RandomHorizontalFlip()] if recipe.flip else []
    return v2.Compose([*steps, v2.RandomChoice([resize, cropped]), *_cleaning()])


def test_resize(recipe: Recipe) -> v2.Transform:
    """The resize that scores are taken with."""
    from ks_detection.data.random_crop import ShortestSize

    return ShortestSize([recipe.test_size], recipe.longest, antialias=True)


def test_transform(recipe: Recipe) -> v2.Compose:
    """The same for images with boxes."""
    return v2.Compose([test_resize(recipe), *_cleaning()])


def _cleaning() -> list[v2.Transform]:
    return [
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(min_size=1, labels_getter=lambda inputs: (inputs[2], inputs[3])),
    ]


def apply(
    transform: v2.Compose, image: Tensor, boxes: Tensor, labels: Tensor, ignored: Tensor, seed: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normalised float image [3, h, w], boxes [T, 4] xyxy in its pixels, labels [T], ignored [T] bool).

    Args:
        image: uint8 [3, H, W]; boxes: [T, 4] xyxy pixels; labels: [T]; ignored: [T] bool.
        seed: of the random parts; the global generator is left as it was. None where there are none.
    """
    wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:])
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # manual_seed would reseed the GPU's too, which is not restored
        image, boxes, labels, ignored = transform(tv_tensors.Image(image), wrapped, labels, ignored)
    return normalise(image.as_subclass(Tensor)), boxes.as_subclass(Tensor), labels, ignored


def normalise(image: Tensor) -> Tensor:
    """Float image with ImageNet's mean and deviation, of a uint8 one."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image.float() / 255 - mean) / std
