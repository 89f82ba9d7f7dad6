"""Inputs for the tests of ms_deform_attn, and its kernel, built once if a compiler is there."""

import functools

import pytest
import torch
from ms_deform_attn import building, library, loader


@functools.cache
def build_once() -> None:
    """Return nothing, with the CPU kernel loaded. A failing compiler fails the tests; a missing one skips them."""
    if library.find("cpu")[0] is None:
        try:
            building.compiler()
        except building.BuildError as error:
            pytest.skip(f"{error}; then: {loader.BUILD_COMMAND}")
        building.build("cpu")
        loader.forget()
    with loader.use_backend("compiled"):
        loader.native("cpu")


def case(
    *,
    batch=2,
    queries=7,
    heads=3,
    channels=8,
    sizes=((6, 5), (3, 4)),
    points=2,
    dtype=torch.float64,
    seed=0,
    spread=0.3,
):
    """(value, spatial_shapes, level_start_index, sampling_locations, attention_weights), some samples outside."""
    generator = torch.Generator().manual_seed(seed)
    areas = [height * width for height, width in sizes]
    starts = [sum(areas[:level]) for level in range(len(areas))]
    shape = (batch, queries, heads, len(sizes), points)
    value = torch.randn(batch, sum(areas), heads, channels, generator=generator, dtype=torch.float64)
    locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * (1 + 2 * spread) - spread
    weights = torch.rand(shape, generator=generator, dtype=torch.float64)
    sizes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
    starts = torch.tensor(starts, dtype=torch.int64)
    return value.to(dtype), sizes, starts, locations.to(dtype), weights.to(dtype)


def gradients(function, inputs, upstream=None):
    """[output, gradient of value, of locations, of weights]."""
    value, sizes, starts, locations, weights = inputs
    leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
    out = function(leaves[0], sizes, starts, leaves[1], leaves[2])
    if upstream is None:
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]
