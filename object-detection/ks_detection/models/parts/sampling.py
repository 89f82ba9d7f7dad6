"""The compiled operator under the arguments that transformers calls its sampling with."""

from __future__ import annotations

import torch
from ms_deform_attn import ms_deform_attn
from torch import Tensor, nn


def sample(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, heads * D] of value [B, S, heads, D], locations [B, Q, heads, L, P, 2] and weights [B, Q, heads, L, P]."""
    kind = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    return ms_deform_attn(value.contiguous(), shapes, starts, locations.to(kind), weights.to(kind))


class Sampling(nn.Module):
    """Stands where transformers samples level by level with `grid_sample`: same arguments, one operator."""

    def forward(self, value, shapes, sizes, starts, locations, weights, im2col_step: int = 64) -> Tensor:
        """See `sample`."""
        return sample(value, shapes, starts, locations, weights)
