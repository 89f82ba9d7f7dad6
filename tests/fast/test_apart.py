"""Queries that no other query sees are computed apart: the answers and gradients of the whole mask."""

import pytest
import torch
from torch import nn

from common.layers import packed_attention


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_of_two_sets_is_that_under_the_whole_mask(dropout):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, dropout, batch_first=True).eval()
    x = torch.randn(2, 5 + 9, 32, requires_grad=True)
    allowed = torch.rand(14, 14) < 0.5
    allowed[:5].fill_diagonal_(True)
    allowed[5:, :5], allowed[5:, 5:] = False, True
    weight = torch.randn(2, 14, 32)
    found = [packed_attention(layer, x, x, x, allowed, apart) for apart in (0, 5)]
    gradients = [torch.autograd.grad(out, (x, *layer.parameters()), weight) for out in found]
    assert torch.allclose(*found, atol=1e-6)
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)
