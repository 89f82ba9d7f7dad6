"""Sine encodings of pixels (temperature 20) and of boxes (temperature 10000)."""

import math

import torch
from torch import Tensor

from common.layers import paired


def _waves(values: Tensor, features: int, temperature: float) -> Tensor:
    """[..., features] sines and cosines, interleaved, of [...] angles."""
    rates = temperature ** (2 * torch.arange(features // 2, dtype=torch.float32, device=values.device) / features)
    angles = values[..., None] / rates
    return paired(angles.sin(), angles.cos())


def pixel_positions(mask: Tensor, features: int, temperature_y: float, temperature_x: float) -> Tensor:
    """[B, H * W, 2 * features] encoding of where each valid pixel lies in its image, y before x.

    Args:
        mask: [B, H, W] bool, True on padding.
        features: numbers per axis.
    """
    valid = ~mask
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    waves = [_waves(y, features, temperature_y), _waves(x, features, temperature_x)]
    return torch.cat(waves, dim=-1).flatten(1, 2)


def box_positions(boxes: Tensor, features: int = 128) -> Tensor:
    """[..., 4 * features] encoding of [..., 4] cxcywh boxes in 0..1, in the order y, x, w, h."""
    return _waves(boxes[..., [1, 0, 2, 3]] * (2 * math.pi), features, 10000.0).flatten(-2)
