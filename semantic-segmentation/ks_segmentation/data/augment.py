"""The published training augmentation, through torchvision's transforms v2, and the test-time resize."""

from __future__ import annotations

import torch
from torch import Tensor

from common.lazy import Module
from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.inference import shortest_edge

v2 = Module("torchvision.transforms.v2")
TF = Module("torchvision.transforms.v2.functional")
PAD_VALUE = 128  # grey, for pixels outside the image
TRIES = 10  # crops drawn to satisfy a condition, as published


def train_view(image: Tensor, labels: Tensor, settings: Config, seed: int, ignore: int) -> tuple[Tensor, Tensor]:
    """One augmented view: scale, crop, colours, mirror image, padding to the crop's size.

    Args:
        image: [3, H, W] uint8; labels: [H, W] ids.
        settings: the INPUT table of the config. The same seed gives the same view on every machine.

    Source: Mask2Former's semantic recipe (arXiv:2112.01527, appendix B).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU's, which is not restored
        sizes = settings.MIN_SIZE_TRAIN
        shortest = sizes[int(torch.randint(len(sizes), ()))]
        size = list(shortest_edge(image.shape[-2:], shortest, settings.MAX_SIZE_TRAIN))
        image = TF.resize(image, size, antialias=True)
        labels = TF.resize(labels[None], size, interpolation=v2.InterpolationMode.NEAREST)[0]
        if settings.CROP.ENABLED:
            image, labels = _crop(image, labels, settings.CROP, ignore)
        if settings.COLOR_AUG_SSD:
            image = _colours(image)
        if settings.RANDOM_FLIP == "horizontal" and torch.rand(()) < 0.5:
            image, labels = TF.horizontal_flip(image), TF.horizontal_flip(labels)
        if settings.CROP.ENABLED:
            image, labels = _pad(image, labels, settings.CROP.SIZE, ignore)
    return image, labels


def _crop(image: Tensor, labels: Tensor, settings: Config, ignore: int) -> tuple[Tensor, Tensor]:
    """A random part of the crop's size that holds a class, and not too much of a single one, if one is found."""
    height, width = (min(side, full) for side, full in zip(settings.SIZE, image.shape[-2:], strict=True))
    for _ in range(TRIES):
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        part = labels[top : top + height, left : left + width]
        told = (part != ignore) & (part >= 0)
        counts = (part + 1).where(told, 0).flatten().bincount()[1:]  # pixels of each class
        counts = counts[counts > 0]
        most = settings.SINGLE_CATEGORY_MAX_AREA
        if len(counts) and (most >= 1 or (len(counts) > 1 and counts.max() < most * counts.sum())):
            break
    else:
        if not len(counts):  # ten empty crops: take one around a labelled pixel
            top, left = _around(labels, height, width, ignore)
    return TF.crop(image, top, left, height, width), TF.crop(labels, top, left, height, width)


def _around(labels: Tensor, height: int, width: int, ignore: int) -> tuple[int, int]:
    places = ((labels != ignore) & (labels >= 0)).nonzero()
    if not len(places):
        return 0, 0
    y, x = places[int(torch.randint(len(places), ()))].tolist()
    top, left = y - int(torch.randint(height, ())), x - int(torch.randint(width, ()))
    return min(max(top, 0), labels.shape[0] - height), min(max(left, 0), labels.shape[1] - width)


def _colours(image: Tensor) -> Tensor:
    """Random brightness (+- 32), contrast, saturation (0.5-1.5) and hue (+- 18 degrees), each half of the time.

    Source: Liu et al., 2016, arXiv:1512.02325 (SSD), in the order that detectron2's projects use.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(()))

    steps = [
        lambda x: (x.float() + uniform(-32, 32)).clamp(0, 255).to(torch.uint8),
        lambda x: TF.adjust_saturation(x, uniform(0.5, 1.5)),
        lambda x: TF.adjust_hue(x, uniform(-18, 18) / 360),
    ]
    steps.insert(
        1 if torch.rand(()) < 0.5 else 3, lambda x: (x.float() * uniform(0.5, 1.5)).clamp(0, 255).to(torch.uint8)
    )
    for step in steps:
        if torch.rand(()) < 0.5:
            image = step(image)
    return image


def _pad(image: Tensor, labels: Tensor, size: tuple[int, int], ignore: int) -> tuple[Tensor, Tensor]:
    bottom, right = (max(side - full, 0) for side, full in zip(size, image.shape[-2:], strict=True))
    if bottom or right:
        image = TF.pad(image, [0, 0, right, bottom], fill=PAD_VALUE)
        labels = torch.nn.functional.pad(labels, (0, right, 0, bottom), value=ignore)
    return image, labels


def scoring_view(image: Tensor, settings: Config) -> Tensor:
    """The image at test size, its short side MIN_SIZE_TEST unless the long one would exceed MAX_SIZE_TEST."""
    size = shortest_edge(image.shape[-2:], settings.MIN_SIZE_TEST, settings.MAX_SIZE_TEST)
    return TF.resize(image, list(size), antialias=True)
