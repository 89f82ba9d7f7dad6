"""What the operator accepts, and the error that says what was wrong."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


def check_inputs(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Return nothing if ranks, sizes, dtypes and devices fit together. Reads no element.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if value.dim() != 4:
        raise ValueError(f"`value` must be [N, S, M, D], got shape {tuple(value.shape)}.")
    if sampling_locations.dim() != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(
            f"`sampling_locations` must be [N, Q, M, L, P, 2], got shape {tuple(sampling_locations.shape)}."
        )
    batch, _, heads, _ = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    _expect("sampling_locations", sampling_locations, (batch, queries, heads, levels, points, 2))
    _expect("attention_weights", attention_weights, (batch, queries, heads, levels, points))
    _expect("spatial_shapes", spatial_shapes, (levels, 2))
    _expect("level_start_index", level_start_index, (levels,))
    for name, tensor in (("spatial_shapes", spatial_shapes), ("level_start_index", level_start_index)):
        if tensor.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"`{name}` must be int64 or int32, got {tensor.dtype}.")
    if value.dtype not in FLOATS:
        raise ValueError(f"`value` must be float32, float64, float16 or bfloat16, got {value.dtype}.")
    # float32 coordinates beside a half value are welcome: bfloat16 cannot tell neighbouring pixels apart
    allowed = {value.dtype, torch.float32} if value.dtype in HALVES else {value.dtype}
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype not in allowed:
            names = " or ".join(sorted(str(dtype) for dtype in allowed))
            raise ValueError(f"`{name}` must be {names} beside a {value.dtype} `value`, got {tensor.dtype}.")
        if tensor.dtype != sampling_locations.dtype:
            raise ValueError(f"`{name}` is {tensor.dtype} but `sampling_locations` is {sampling_locations.dtype}.")
        if tensor.device != value.device:
            raise ValueError(f"`{name}` is on {tensor.device} but `value` is on {value.device}.")


def host_shapes(
    spatial_shapes: Tensor | Sequence, level_start_index: Tensor | Sequence, tokens: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return ([(height, width)] per level, [first token] per level), read from the tensors.

    Raises:
        ValueError: if a size is negative, a level does not lie within the `tokens` rows of `value`, or the
            sizes do not add up to `tokens`.
    """
    sizes, starts = read_ints(spatial_shapes), read_ints(level_start_index)
    if any(height < 0 or width < 0 for height, width in sizes):
        raise ValueError(f"`spatial_shapes` has a negative size: {sizes}.")
    if any(max(height, width) > 2**24 for height, width in sizes):
        raise ValueError(f"`spatial_shapes` has a side above {2**24}: {sizes}.")
    total = sum(height * width for height, width in sizes)
    if total != tokens:
        raise ValueError(f"`spatial_shapes` {sizes} add up to {total} tokens, but `value` has S = {tokens}.")
    for (height, width), start in zip(sizes, starts, strict=True):
        if start < 0 or start + height * width > tokens:
            raise ValueError(
                f"`level_start_index` {starts} puts a {height}x{width} level outside the {tokens} tokens of `value`."
            )
    spans = sorted((start, height * width) for (height, width), start in zip(sizes, starts, strict=True))
    if any(start + size > following for (start, size), (following, _) in zip(spans, spans[1:], strict=False)):
        raise ValueError(f"`level_start_index` {starts} makes levels of sizes {sizes} overlap.")
    return [tuple(size) for size in sizes], starts


def read_ints(tensor: Tensor | Sequence) -> list:
    """The numbers of a small integer tensor. For one on an accelerator they are read once and remembered."""
    if not isinstance(tensor, Tensor):
        return list(tensor)
    if tensor.device.type == "cpu":
        return tensor.tolist()
    known = getattr(tensor, "_host_numbers", None)  # a read waits for the device: once per tensor is enough
    if known is None or known[0] != tensor._version:
        known = (tensor._version, tensor.tolist())
        tensor._host_numbers = known
    return known[1]


def _expect(name: str, tensor: Tensor, shape: tuple) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {tuple(tensor.shape)}.")
