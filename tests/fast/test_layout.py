"""Images with channels last in bfloat16 regions: the same numbers, and answers of convolutions that need no copy."""

import pytest
import torch
from ks_detection.models.parts.resnet import ResNet
from ks_segmentation.models.parts.points import sample
from torch.nn import functional as F

from common.fast import switch
from common.fast.layout import channels_last

LAST = torch.channels_last
half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
pytestmark = pytest.mark.skipif(not half, reason="no bfloat16 products on this processor")


@pytest.fixture(autouse=True)
def region():
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.fixture
def off():
    switch(False)
    yield
    switch(True)


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_stay_and_channels_lie_side_by_side(count):
    tokens = torch.randn(count, 9 + 20, 6, requires_grad=True)
    maps = tokens[:, 9:].transpose(1, 2).unflatten(2, (4, 5))  # a batch of one has another stride than a map of its own
    laid = channels_last(maps)
    assert torch.equal(laid, maps) and laid.stride() == (4 * 5 * 6, 1, 5 * 6, 6)
    (laid * torch.arange(laid.numel()).view_as(laid)).sum().backward()
    expected = torch.zeros_like(tokens)
    expected[:, 9:] = torch.arange(maps.numel()).view(maps.shape).flatten(2).transpose(1, 2)
    assert torch.equal(tokens.grad, expected)


@pytest.mark.parametrize("count", [1, 2])
def test_resizing_keeps_the_layout_and_the_numbers(count):
    maps = torch.randn(count, 6, 4, 5)
    resized = F.interpolate(channels_last(maps), (8, 10), mode="bilinear")
    assert resized.is_contiguous(memory_format=LAST)
    assert torch.allclose(resized, F.interpolate(maps, (8, 10), mode="bilinear"), atol=1e-6)


def test_a_backbone_answers_the_same_and_hands_the_layout_on():
    torch.manual_seed(0)
    backbone, images = ResNet("resnet50", (1, 2, 3)).eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        with torch.autocast("cpu", enabled=False):
            exact = backbone(images)
        for ours, plain, one in zip(backbone(channels_last(images)), backbone(images), exact, strict=True):
            assert ours.is_contiguous(memory_format=LAST)
            assert (ours - one).norm() <= 1.1 * (plain - one).norm(), "no further from the float32 answer"


def test_points_of_maps_in_either_layout_are_equal():
    torch.manual_seed(0)
    maps, points = torch.randn(1, 16, 6, 7), torch.rand(1, 11, 2)
    assert torch.allclose(sample(channels_last(maps), points), sample(maps, points), atol=1e-6)


@pytest.mark.usefixtures("off")
def test_switched_off_it_gives_what_it_got():
    images = torch.randn(2, 3, 4, 5)
    assert channels_last(images) is images


def test_in_float32_the_layout_stays():
    images = torch.randn(2, 3, 4, 5)
    with torch.autocast("cpu", enabled=False):
        assert channels_last(images) is images


def test_tokens_and_other_devices_are_left_alone():
    tokens, far = torch.randn(2, 3, 4), torch.empty(2, 3, 4, 5, device="meta")
    assert channels_last(tokens) is tokens and channels_last(far) is far
