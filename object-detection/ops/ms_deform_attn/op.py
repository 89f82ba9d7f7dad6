"""The operator as torch knows it: schema, kernels, shapes for tracing, derivative, autocast, vmap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ms_deform_attn import loader, reference
from ms_deform_attn.checks import check_inputs, host_shapes

FORWARD, BACKWARD = "ms_deform_attn::forward", "ms_deform_attn::backward"
_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
_library = torch.library.Library("ms_deform_attn", "DEF")
_library.define(f"forward({_INPUTS}) -> Tensor")
_library.define(f"backward(Tensor grad_out, {_INPUTS}) -> (Tensor, Tensor, Tensor)")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature maps, [N, Q, M*D] in the dtype of `value`.

    Args:
        value: [N, S, M, D] the maps of all levels, one row per pixel, M heads of D channels.
        spatial_shapes: [L, 2] (height, width) of each level; the products add up to S.
        level_start_index: [L] row of `value` where each level starts.
        sampling_locations: [N, Q, M, L, P, 2] (x, y), 0 and 1 being the outer edges of the map. What lies outside
            samples zero; so do NaN and infinity. May be float32 beside a bfloat16 or float16 `value`.
        attention_weights: [N, Q, M, L, P] factor of each sample, of the same dtype as the locations.

    Raises:
        ValueError: naming the argument that does not fit.

    Source: Zhu et al., 2021, arXiv:2010.04159, equation 3.
    """
    for name, tensor in (
        ("value", value),
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"`{name}` must be a tensor, got {type(tensor).__name__}.")
    return torch.ops.ms_deform_attn.forward(
        value,
        _integers("spatial_shapes", spatial_shapes),
        _integers("level_start_index", level_start_index),
        sampling_locations,
        attention_weights,
    )


def _integers(name: str, numbers: Tensor | Sequence) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers
    try:
        return torch.tensor(numbers, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a tensor or a list of integers, got {numbers!r}.") from error


def _way(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """(what computes, the compiled kernels or plain PyTorch; the sizes of the levels as it wants them; their starts)."""
    check_inputs(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    sizes, starts = host_shapes(spatial_shapes, level_start_index, value.shape[1])
    kernels = loader.native(value.device.type)
    if kernels is None:
        return reference, sizes, starts
    return kernels, [side for size in sizes for side in size], starts


def _forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    way, *levels = _way(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return way.forward(value, *levels, sampling_locations, attention_weights)


def _backward(grad_out, value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    way, *levels = _way(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    expected = (value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])
    if tuple(grad_out.shape) != expected:
        raise ValueError(f"`grad_out` must have shape {expected}, got {tuple(grad_out.shape)}.")
    return way.backward(grad_out, value, *levels, sampling_locations, attention_weights)


# Every device: what there is no compiled kernel for runs in plain PyTorch.
_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(FORWARD)
def _fake_forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    check_inputs(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


@torch.library.register_fake(BACKWARD)
def _fake_backward(grad_out, value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return tuple(x.new_empty(x.shape) for x in (value, sampling_locations, attention_weights))


def _keep_forward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _derivative(ctx, grad_out):
    value, shapes, starts, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.ms_deform_attn.backward(
        grad_out, value, shapes, starts, locations, weights
    )
    return grad_value, None, None, grad_locations, grad_weights


def _second_derivative(ctx, *grads):
    """Through plain PyTorch: `grid_sample` knows its own second derivative."""
    saved = ctx.saved_tensors
    grad_out, value, shapes, starts, locations, weights = saved
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in (grad_out, value, locations, weights)]
        out = reference.ms_deform_attn_reference(given[1], shapes, starts, given[2], given[3])
        firsts = torch.autograd.grad(out, given[1:], given[0], create_graph=True)
        seconds = torch.autograd.grad(firsts, given, grads, allow_unused=True)
    on_grad, on_value, on_locations, on_weights = seconds
    return on_grad, on_value, None, None, on_locations, on_weights


torch.library.register_autograd(FORWARD, _derivative, setup_context=_keep_forward)
torch.library.register_autograd(BACKWARD, _second_derivative, setup_context=_keep_forward)


def _autocast(device: str):
    """Rule: `value` in the autocast dtype, coordinates and weights in float32.

    In bfloat16 two neighbouring pixels of a 200 pixel wide map have the same coordinate.
    """
    key = getattr(torch._C.DispatchKey, "Autocast" + torch._C._dispatch_key_for_device(device))

    def rule(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        dtype = torch.get_autocast_dtype(device)
        if value.dtype.is_floating_point and value.dtype != torch.float64:
            value, sampling_locations = value.to(dtype), sampling_locations.float()
            attention_weights = attention_weights.float()
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.ms_deform_attn.forward(
                value, spatial_shapes, level_start_index, sampling_locations, attention_weights
            )

    _library.impl("forward", rule, "Autocast" + torch._C._dispatch_key_for_device(device))


for _device in ("cpu", "cuda"):
    _autocast(_device)


def _over_batch(operator):
    """Rule for vmap: the mapped axis joins the batch axis."""

    def rule(info, in_dims, *inputs):
        shapes = len(inputs) - 4  # spatial_shapes, level_start_index
        for name, place in (("spatial_shapes", shapes), ("level_start_index", shapes + 1)):
            if in_dims[place] is not None:
                raise ValueError(f"`{name}` cannot be mapped over by vmap: all items share their levels.")
        joined = []
        for place, (tensor, dim) in enumerate(zip(inputs, in_dims, strict=True)):
            if place in (shapes, shapes + 1):
                joined.append(tensor)
                continue
            mapped = tensor.movedim(dim, 0) if dim is not None else tensor.expand(info.batch_size, *tensor.shape)
            joined.append(mapped.flatten(0, 1))
        outputs = operator(*joined)
        apart = lambda tensor: tensor.unflatten(0, (info.batch_size, -1))  # noqa: E731
        if isinstance(outputs, Tensor):
            return apart(outputs), 0
        return tuple(map(apart, outputs)), (0,) * len(outputs)

    return rule


torch.library.register_vmap(FORWARD, _over_batch(torch.ops.ms_deform_attn.forward))
torch.library.register_vmap(BACKWARD, _over_batch(torch.ops.ms_deform_attn.backward))
