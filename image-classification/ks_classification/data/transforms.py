"""Image transforms of torchvision v2, a batch at a time: uint8 [3, H, W] each in, uint8 [3, S, S] out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.lazy import Module

v2 = Module("torchvision.transforms.v2")
TF = Module("torchvision.transforms.v2.functional")
RATIO = (0.8, 1.25)  # width : height of a crop
TRIES = 10  # crops drawn until one fits
SMALL = 2**16  # values of an image up to which joining images saves more than it costs


def test_views(images: Sequence[Tensor], size: int, keep_aspect: bool = True) -> list[Tensor]:
    """Resizes the shorter side to `size` and crops the centre, or squeezes to a square (as published)."""
    steps = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    return together(v2.Compose(steps) if keep_aspect else v2.Resize((size, size), antialias=True), images)


def train_views(images: Sequence[Tensor], seeds: Sequence[int], size: int, flip: bool, crop: float) -> list[Tensor]:
    """A random crop of at least `crop` of the area, resized to `size`, and a mirror image half of the time.

    Each is what torchvision's RandomResizedCrop and RandomHorizontalFlip make of it with torch's generator seeded by
    its seed, which itself is not touched.
    """
    cut, mirrored = [], []
    for image, seed in zip(images, seeds, strict=True):
        chance = torch.Generator().manual_seed(seed)
        top, left, height, width = _place(image.shape[-2], image.shape[-1], crop, chance)
        cut.append(image[:, top : top + height, left : left + width])
        mirrored.append(flip and torch.rand(1, generator=chance).item() < 0.5)
    views = together(lambda x: TF.resize(x, [size, size], antialias=True), cut)
    return [view.flip(-1) if turned else view for view, turned in zip(views, mirrored, strict=True)]


def _place(height: int, width: int, crop: float, chance: torch.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop, drawn as torchvision does."""
    low, high = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(TRIES):
        area = height * width * torch.empty(1).uniform_(crop, 1.0, generator=chance).item()
        ratio = torch.empty(1).uniform_(low, high, generator=chance).exp_().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=chance).item()
            left = torch.randint(0, width - w + 1, (1,), generator=chance).item()
            return int(top), int(left), h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def together(change: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """`change` of each image; small ones of one shape go through it at once."""
    alike: dict[torch.Size, list[int]] = {}
    found: dict[int, Tensor] = {}
    for i, image in enumerate(images):
        if image.numel() > SMALL:
            found[i] = change(image)
        else:
            alike.setdefault(image.shape, []).append(i)
    for own in alike.values():
        joined = torch.stack([images[i].permute(1, 2, 0) for i in own]).permute(0, 3, 1, 2)  # colours last, as decoded
        found |= zip(own, change(joined), strict=True)
    return [found[i] for i in range(len(images))]
