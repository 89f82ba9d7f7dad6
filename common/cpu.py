"""What makes training on a CPU fast: oneDNN for tall matrix products, and memory that is kept for reuse."""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TALL = 256  # rows from which the convolution's set-up pays


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b like `F.linear`, up to rounding; on a CPU in float32, tall inputs go through a 1x1 convolution.

    Both compute the same product, but `F.linear` calls MKL, which reaches half of oneDNN's speed on AMD
    processors (200 against 450 GFLOP/s on two cores, forward and backward alike).
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.numel() < TALL * x.shape[-1] or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # [1, in, rows, 1], channels last
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """An nn.Linear that computes with `linear`; same parameters and names."""

    affine = staticmethod(linear)  # adapters on this layer compute the base product in the same way

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def keep_freed_memory() -> bool:
    """Tells the C allocator to keep what is freed for the next step; returns whether it obeyed (glibc only).

    By default every tensor above 32 MB is mapped anew and its pages are zeroed at first touch, which costs more
    than most elementwise operations on it. The process then holds its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 * 2**20)))
