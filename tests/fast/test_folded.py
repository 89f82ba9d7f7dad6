"""Convolutions with their norm, sum and relu in one pass give what the parts give, and notice every change."""

import pytest
import torch
from ks_detection.models.parts.resnet import FrozenNorm, ResNet
from torch import nn

from common import layers, timing
from common.fast import folded, switch


@pytest.fixture
def plain():
    """Calls a function with the fast paths off."""

    def call(function):
        switch(False)
        try:
            return function()
        finally:
            switch(True)

    return call


def parts(groups=1, kind=3, stride=1):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 32, kind, stride, kind // 2, groups=groups, bias=False).requires_grad_(False)
    norm = FrozenNorm(32)
    for tensor in (conv.weight, *norm.buffers()):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    conv.weight.sub_(0.6)
    return conv, norm, torch.randn(2, 16, 13, 17, generator=generator)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_sum", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 3, 2), (1, 1, 2), (4, 3, 1)])
def test_answers_are_those_of_the_parts(shape, with_sum, relu, plain):
    conv, norm, x = parts(*shape)
    added = torch.randn(conv(x).shape, generator=torch.Generator().manual_seed(1)) if with_sum else None
    ours = folded(conv, norm, x, added, relu)
    wanted = plain(lambda: layers.conv_norm(conv, norm, x, added, relu))
    assert torch.allclose(ours, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_bfloat16_is_no_further_from_float32_than_the_parts_are(plain):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 products on this processor")
    conv, norm, x = parts()
    exact = plain(lambda: layers.conv_norm(conv, norm, x))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = folded(conv, norm, x, None, False), plain(lambda: layers.conv_norm(conv, norm, x))
    assert ours.dtype is theirs.dtype is torch.bfloat16
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize("name", ["conv.weight", "norm.bias", "norm.running_var"])
def test_a_change_of_any_tensor_shows(name, plain):
    conv, norm, x = parts()
    before = folded(conv, norm, x, None, True)
    owner, leaf = name.split(".")
    with torch.no_grad():
        getattr({"conv": conv, "norm": norm}[owner], leaf).mul_(2.0)
    after = folded(conv, norm, x, None, True)
    wanted = plain(lambda: layers.conv_norm(conv, norm, x, relu=True))
    assert not torch.allclose(before, after) and torch.allclose(after, wanted, atol=1e-4)


def test_what_wants_a_gradient_is_left_to_torch():
    conv, norm, x = parts()
    assert folded(conv, norm, x.clone().requires_grad_(), None, True) is None
    conv.requires_grad_(True)
    assert folded(conv, norm, x, None, True) is None
    with torch.no_grad():
        assert folded(conv, norm, x, None, True) is not None


def test_a_frozen_backbone_answers_the_same_at_the_same_number_of_operations(plain):
    torch.manual_seed(0)
    backbone, images = ResNet("resnet50", (1, 2, 3)).requires_grad_(False), torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(backbone(images), plain(lambda: backbone(images)), strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    step = lambda watch: backbone(images)  # noqa: E731
    assert timing.flops(step) == plain(lambda: timing.flops(step))
