"""How numbers lie in memory: channels of a pixel side by side, for which oneDNN's convolutions need no copies; pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from common.fast.products import half_products, running, usable


def channels_last(images: Tensor, exact: bool = True) -> Tensor:
    """The same [B, C, H, W], in a bfloat16 region on a CPU in channels-last memory format, which convolutions hand on.

    Where maps lie plane by plane, oneDNN's bfloat16 convolutions copy each on its way in and out: a ResNet-50 at
    480 x 640 took 347 in the place of 97 ms on two cores with AMX. In float32 it took 252 in the place of 212 ms; there
    the layout stays, so that answers are rounded as those of the published programs are, unless it need not be `exact`.
    """
    half = torch.is_autocast_enabled("cpu") and half_products(images)
    if not (running() and (half or (not exact and usable(images))) and images.dim() == 4):
        return images
    if len(images) > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # the stride of a batch of one says nothing about its layout, but torch's resizing goes by it
    return images.squeeze(0).permute(1, 2, 0).contiguous().unsqueeze(0).permute(0, 3, 1, 2)


def paired(a: Tensor, b: Tensor) -> Tensor | None:
    """[..., 2 D] a0, b0, a1, b1 and so on of two float32 [..., D], or None where torch's stack is to do it.

    A stack copies number by number: 2.2 in the place of 0.4 ms with two sines of [8, 150, 4, 32] on one core.
    """
    if not usable(a, b, autocast=True):
        return None
    return torch.view_as_real(torch.complex(a, b)).flatten(-2)
