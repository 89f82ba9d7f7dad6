"""Convolutions by tiles and by products are torch's, as exact as oneDNN's own, with their gradients."""

import copy

import pytest
import torch
from torch import nn

from common import layers
from common.fast import convolution, switch


def layer_and_maps(kind, batch, height, width, channels=64, out=80, bias=True):
    """A convolution and maps [B, C, H, W] with channels last."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(channels, out, kind, padding=kind // 2, bias=bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    maps = torch.randn(batch, height, width, channels, generator=generator).permute(0, 3, 1, 2)
    return layer, maps.requires_grad_()


def answers(call, layer, maps):
    """The answer and every gradient."""
    answer = call(layer, maps)
    weight = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).to(answer.dtype)
    return [answer, *torch.autograd.grad(answer, (maps, *layer.parameters()), weight)]


def test_even_maps_are_no_worse_than_the_published_models_are_compared_at():
    layer, _ = layer_and_maps(3, 1, 64, 64, bias=False)
    maps = (100 + torch.arange(64.0)).expand(1, 64, 64, 64).contiguous(memory_format=torch.channels_last)
    truth = copy.deepcopy(layer).double()(maps.double())
    assert (convolution(layer, maps) - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 1, 64, 64), (3, 2, 65, 71), (3, 1, 300, 16), (1, 2, 9, 7), (1, 1, 70, 70)])
def test_answers_and_gradients_are_as_exact_as_torchs(shape, bias):
    layer, maps = layer_and_maps(*shape, bias=bias)
    exact = answers(lambda a, b: a(b), copy.deepcopy(layer).double(), maps.detach().double().requires_grad_())
    torchs = answers(lambda a, b: a(b), layer, maps)
    own = answers(convolution, layer, maps)
    for truth, mine, other in zip(exact, own, torchs, strict=True):
        assert (mine - truth).norm() <= max(5 * (other - truth).norm(), 1e-6 * truth.norm())


def test_gradients_can_be_differentiated_again():
    layer, maps = layer_and_maps(3, 1, 64, 64, bias=False)
    found = []
    for call in (convolution, lambda a, b: a(b)):
        (first,) = torch.autograd.grad(call(layer, maps).square().sum(), maps, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (maps, layer.weight)))
    for own, torchs in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-4 * float(torchs.abs().max()))


def test_a_frozen_layer_gets_no_gradient():
    layer, maps = layer_and_maps(3, 1, 64, 64)
    layer.requires_grad_(False)
    own = convolution(layer, maps)
    assert torch.autograd.grad(own.sum(), maps)[0].shape == maps.shape
    assert not convolution(layer, maps.detach()).requires_grad


class Adapted(nn.Conv2d):
    """Any other layer than torch's own."""


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 8, 3, padding=1),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 64, 3, padding=1).double(),
        Adapted(64, 64, 3, padding=1),
    ],
)
def test_what_is_no_such_convolution_is_left_to_torch(other):
    maps = torch.randn(1, 64, 64, 64, dtype=other.weight.dtype)
    assert convolution(other, maps) is None
    assert torch.equal(layers.convolution(other, maps), other(maps))


def test_small_maps_autocast_and_the_switch_leave_it_to_torch():
    layer, maps = layer_and_maps(3, 1, 64, 64)
    assert convolution(layer, maps[:, :, :60]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(layer, maps) is None
    switch(False)
    try:
        assert convolution(layer, maps) is None
    finally:
        switch(True)
    assert convolution(layer, maps) is not None
