"""Image transforms, from torchvision v2: uint8 [3, H, W] in, uint8 [3, S, S] out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def test_transform(size: int, keep_aspect: bool = True) -> Callable[[Tensor], Tensor]:
    """Resize the shorter side to `size` and crop the centre, or squeeze to a square (as published)."""
    from torchvision.transforms import v2

    if not keep_aspect:
        return v2.Resize((size, size), antialias=True)
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def train_transform(size: int, flip: bool, crop: float, keep_aspect: bool = True) -> Callable[[Tensor], Tensor]:
    """Random crop of at least `crop` of the area, resized to `size`, and a mirror image half of the time."""
    from torchvision.transforms import v2

    steps: list[Callable] = [v2.RandomResizedCrop(size, scale=(crop, 1.0), ratio=(0.8, 1.25), antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def seeded(transform: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    """`transform(image)` with its random numbers drawn from `seed`, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # manual_seed would reseed the GPU's too, which is not restored
        return transform(image)
