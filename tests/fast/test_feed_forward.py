"""The fused feed-forward net is two layers with an activation between them, adapted or not, to the second derivative."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.fast.ffn import FEW
from common.layers import Linear, feed_forward
from common.lora import LoRALinear, merged

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


def net(adapted, bias=True, stacked=False):
    """Two layers 12 -> 20 -> 8; `adapted` says which of them have an adapter."""
    torch.manual_seed(0)
    layers = nn.ModuleList([Linear(12, 20, bias=bias), Linear(20, 8, bias=bias)])
    for place in adapted:
        layers[place] = LoRALinear(layers[place], rank=3, alpha=2.0)
        layers[place].lora_B.data.normal_()
        if stacked:
            layers[place].stack()
            layers[place].lora_B.data.normal_()
    return layers


def plain(x, first, second, activation):
    return second(ACTIVATIONS[activation](first(x)))


def results(function, layers, x, activation, create_graph=False):
    """The answer and its gradients with respect to x and everything that trains."""
    layers = copy.deepcopy(layers)
    x = x.clone().requires_grad_()
    out = function(x, *layers, activation)
    inputs = [x, *(p for p in layers.parameters() if p.requires_grad)]
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    gradients = torch.autograd.grad((out * weight).square().sum(), inputs, create_graph=create_graph)
    if not create_graph:
        return [out, *gradients]
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)
    return [out, *gradients, *second]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adapted", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("rows", [3, FEW + 7])
def test_answer_and_gradients_are_those_of_the_parts(activation, adapted, rows):
    layers, x = net(adapted), torch.randn(1, rows, 12)
    for mine, parts in zip(*(results(f, layers, x, activation) for f in (feed_forward, plain)), strict=True):
        torch.testing.assert_close(mine, parts, rtol=1e-5, atol=1e-5 * float(parts.detach().abs().max()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_are_those_of_the_parts(activation):
    layers, x = net((1,)), torch.randn(FEW, 12)
    for mine, parts in zip(*(results(f, layers, x, activation, True) for f in (feed_forward, plain)), strict=True):
        torch.testing.assert_close(mine, parts, rtol=1e-4, atol=1e-5 * float(parts.detach().abs().max()))


@pytest.mark.parametrize("case", ["no bias", "stacked", "transposed input"])
def test_other_shapes_of_layers_and_inputs(case):
    layers = net((0, 1), bias=case != "no bias", stacked=case == "stacked")
    x = torch.randn(2, 12, FEW).transpose(1, 2) if case == "transposed input" else torch.randn(2, FEW, 12)
    for mine, parts in zip(*(results(f, layers, x, "gelu") for f in (feed_forward, plain)), strict=True):
        torch.testing.assert_close(mine, parts, rtol=1e-5, atol=1e-5 * float(parts.detach().abs().max()))


def test_fresh_adapters_change_no_bit_and_merged_ones_stay_merged():
    base, x = net(()), torch.randn(FEW, 12)
    expected = feed_forward(x, *base, "relu")
    layers = nn.ModuleList([LoRALinear(base[0], 2), LoRALinear(base[1], 2)])
    torch.testing.assert_close(feed_forward(x, *layers, "relu"), expected, rtol=0, atol=0)
    layers[0].lora_B.data.normal_()
    with merged(layers):
        torch.testing.assert_close(feed_forward(x, *layers, "relu"), plain(x, *layers, "relu"))


def test_frozen_layers_get_no_gradient_but_pass_it_on():
    layers, x = net(()).requires_grad_(False), torch.randn(FEW, 12, requires_grad=True)
    feed_forward(x, *layers, "relu").sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in layers.parameters())


def test_autocast_and_double_precision_take_the_plain_path():
    layers, x = net((0,)), torch.randn(FEW, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert feed_forward(x, *layers, "relu").dtype == torch.bfloat16
    assert feed_forward(x.double(), *layers.double(), "relu").dtype == torch.float64


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adapted", [(), (0, 1)])
def test_under_autocast_it_is_as_near_to_float32_as_the_parts_are(activation, adapted):
    """One product with W + scale B A, rounded once, in the place of a product beside two narrow ones."""
    layers, x = net(adapted), torch.randn(2, FEW, 12)
    exact = results(plain, layers, x, activation)
    with torch.autocast("cpu", torch.bfloat16):
        found, parts = (results(f, layers, x, activation) for f in (feed_forward, plain))
        fused = feed_forward(x, *layers, activation)
    assert fused.dtype is torch.bfloat16 and "_FeedForward" in str(fused.grad_fn)
    for mine, other, right in zip(found, parts, exact, strict=True):
        assert mine.dtype == other.dtype
        far, usual = ((value.float() - right).norm() / right.norm() for value in (mine, other))
        assert far <= 1.5 * usual + 2e-3
