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
