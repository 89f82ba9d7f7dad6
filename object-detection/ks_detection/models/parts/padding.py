"""A batch of images of different sizes as one padded tensor and its mask."""

from typing import NamedTuple

import torch
from torch import Tensor


class Padded(NamedTuple):
    """Images padded at the bottom and right with zeros.

    pixels: [B, 3, H, W]; mask: [B, H, W] bool, True where there is only padding.
    """

    pixels: Tensor
    mask: Tensor


def pad_images(images: list[Tensor]) -> Padded:
    """The images in the top left corners of one tensor as large as the largest height and width."""
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for row, image in enumerate(images):
        h, w = image.shape[-2:]
        pixels[row, :, :h, :w] = image
        mask[row, :h, :w] = False
    return Padded(pixels, mask)


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """[B, height, width] mask of a feature level: the nearest pixel's."""
    small = torch.nn.functional.interpolate(mask[:, None].float(), size=(height, width))  # nearest
    return small[:, 0].to(torch.bool)


def valid_ratio(mask: Tensor) -> Tensor:
    """[B, 2] the part (x, y) of each level that is image, read along the first row and column."""
    height, width = mask.shape[-2:]
    valid_x = (~mask[:, 0, :]).sum(1) / width
    valid_y = (~mask[:, :, 0]).sum(1) / height
    return torch.stack([valid_x, valid_y], dim=-1)


def pad_maps(
    images: list[list[Tensor]], sizes: list[tuple[int, int]], device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """([B, C, h, w] per level, [B, H, W] mask): maps of images of `sizes` pixels padded to the largest."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool, device=device)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = False
    levels = []
    for maps in zip(*images, strict=True):
        h, w = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        level = torch.zeros(len(maps), maps[0].shape[0], h, w, device=device)
        for row, found in enumerate(maps):
            level[row, :, : found.shape[-2], : found.shape[-1]] = found.to(device)
        levels.append(level)
    return levels, mask
