"""Numbers in pairs: what a stack gives, bit for bit."""

import pytest
import torch

from common import layers
from common.fast import paired


def test_pairs_and_their_gradients_are_those_of_a_stack():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    ours, stacked = paired(a, b), torch.stack([a, b], -1).flatten(-2)
    assert torch.equal(ours, stacked)
    weight = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), (a, b)) for x in (ours, stacked)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_torch(dtype):
    a, b = torch.randn(2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert paired(a, b) is None
    assert torch.equal(layers.paired(a, b), torch.stack([a, b], -1).flatten(-2))
