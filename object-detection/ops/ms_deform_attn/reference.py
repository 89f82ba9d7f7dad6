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
    return forward(value, sizes, starts, sampling_locations, attention_weights)


def forward(value: Tensor, sizes: list, starts: list, locations: Tensor, weights: Tensor) -> Tensor:
    """As `ms_deform_attn_reference`, of checked arguments; half precision accumulates in float32."""
    dtype = value.dtype
    if dtype in HALVES:
        value, locations, weights = value.float(), locations.float(), weights.float()
    return sum_of_samples(value, sizes, starts, bounded(locations), weights).to(dtype)


def bounded(locations: Tensor) -> Tensor:
    """Locations within [-1, 2]: beyond it all is padding, but infinities and NaN would poison it (0 * inf)."""
    return torch.nan_to_num(locations, nan=-1.0, posinf=2.0, neginf=-1.0).clamp(-1.0, 2.0)


def sum_of_samples(
    value: Tensor, sizes: list[tuple[int, int]], starts: list[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """The decomposition that other implementations fall back to, unguarded: [N, Q, M*D]."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    if 0 in (batch, queries, heads, channels, levels, points):
        return value.sum() * 0 + value.new_zeros(batch, queries, heads * channels)
    grids = _grids(locations)
    samples = []
    for level, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        if 0 in size:
            samples.append(value.new_zeros(batch * heads, channels, queries, points))
        else:
            image = _image(value, size, start)
            samples.append(F.grid_sample(image, grids[:, :, level], "bilinear", "zeros", align_corners=False))
    stack = torch.stack(samples, dim=-2).flatten(-2)  # [N*M, D, Q, L*P]
    factors = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    summed = (stack * factors).sum(-1)  # [N*M, D, Q]
    return summed.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def backward(
    grad_out: Tensor, value: Tensor, sizes: list, starts: list, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, level by level: nothing but the inputs need be kept for it."""
    kinds = value.dtype, locations.dtype
    if value.dtype in HALVES:
        value, locations, weights = value.float(), locations.float(), weights.float()
    grad_value, grad_locations, grad_weights = map(torch.zeros_like, (value, locations, weights))
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = _grids(bounded(locations))
    upstream = grad_out.to(value.dtype).view(batch, queries, heads, channels).permute(0, 2, 3, 1)
    upstream = upstream.reshape(batch * heads, channels, queries, 1)
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        if 0 in (height, width, batch, queries, heads, channels, weights.shape[-1]):
            continue
        image, grid = _image(value, (height, width), start), grids[:, :, level]
        factors = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [N*M, 1, Q, P]
        on_image, on_grid = torch.ops.aten.grid_sampler_2d_backward(
            upstream * factors, image, grid, 0, 0, False, [True, True]
        )
        samples = F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
        on_image = on_image.view(batch, heads, channels, height * width).permute(0, 3, 1, 2)
        grad_value[:, start : start + height * width] = on_image
        grad_locations[:, :, :, level] = 2 * on_grid.view(batch, heads, queries, -1, 2).transpose(1, 2)
        on_weights = (samples * upstream).sum(1).view(batch, heads, queries, -1)
        grad_weights[:, :, :, level] = on_weights.transpose(1, 2)
    outside = (locations < -1) | (locations > 2) | ~locations.isfinite()  # there `bounded` is constant
    grad_locations.masked_fill_(outside, 0)
    return grad_value.to(kinds[0]), grad_locations.to(kinds[1]), grad_weights.to(kinds[1])


def _grids(locations: Tensor) -> Tensor:
    return (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [N*M, Q, L, P, 2], in -1 .. 1


def _image(value: Tensor, size: tuple[int, int], start: int) -> Tensor:
    """One level as grid_sample wants it, [N*M, D, height, width]."""
    batch, _, heads, channels = value.shape
    image = value[:, start : start + size[0] * size[1]].flatten(2).transpose(1, 2)
    return image.reshape(batch * heads, channels, *size)
