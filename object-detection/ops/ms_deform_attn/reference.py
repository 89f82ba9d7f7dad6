"""The operator in plain PyTorch: one `grid_sample` per level. Any device, any float, any order of derivative."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ms_deform_attn.checks import HALVES, check_inputs, host_shapes


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples, [N, Q, M*D]; arguments and meaning as in `ms_deform_attn`.

    Raises:
        ValueError: as `ms_deform_attn`.
    """
    check_inputs(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    sizes, starts = host_shapes(spatial_shapes, level_start_index, value.shape[1])
    dtype = value.dtype
    if dtype in HALVES:  # accumulate in float32
        value, sampling_locations, attention_weights = (
            x.float() for x in (value, sampling_locations, attention_weights)
        )
    # Anything outside [-1, 2] samples only padding; infinities and NaN would poison it (0 * inf).
    locations = torch.nan_to_num(sampling_locations, nan=-1.0, posinf=2.0, neginf=-1.0).clamp(-1.0, 2.0)
    return sum_of_samples(value, sizes, starts, locations, attention_weights).to(dtype)


def sum_of_samples(
    value: Tensor,
    sizes: list[tuple[int, int]],
    starts: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The decomposition that other implementations fall back to, unguarded: [N, Q, M*D]."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    if 0 in (batch, queries, heads, channels, levels, points):
        return value.sum() * 0 + value.new_zeros(batch, queries, heads * channels)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # [N*M, Q, L, P, 2], in -1 .. 1
    samples = []
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        if height * width == 0:
            samples.append(value.new_zeros(batch * heads, channels, queries, points))
            continue
        image = value[:, start : start + height * width].flatten(2).transpose(1, 2)
        image = image.reshape(batch * heads, channels, height, width)
        samples.append(F.grid_sample(image, grids[:, :, level], "bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stack = torch.stack(samples, dim=-2).flatten(-2)  # [N*M, D, Q, L*P]
    summed = (stack * weights).sum(-1)  # [N*M, D, Q]
    return summed.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
