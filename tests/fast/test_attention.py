"""Attention by batched products is torch's, as exact as torch's own in bfloat16, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from common import layers
from common.fast import attention, switch

half = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def operands(*shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).requires_grad_() for _ in range(4)]


def masks(kind, length):
    if kind == "bool":
        return torch.ones(length, length, dtype=torch.bool).tril()
    return torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(1)) if kind == "added" else None


def gradients(out, q, k, v, grad):
    return [out, *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))]


@pytest.mark.skipif(not half, reason="no bfloat16 products on this processor")
@pytest.mark.parametrize("kind", ["", "bool", "added"])
@pytest.mark.parametrize("shape", [(2, 3, 37, 16), (2, 2, 3, 9, 8)])
def test_answers_and_gradients_are_as_exact_as_torchs(shape, kind):
    q, k, v, grad = operands(*shape)
    mask = masks(kind, shape[-2])
    exact = gradients(F.scaled_dot_product_attention(q, k, v, mask), q, k, v, grad)
    with torch.autocast("cpu", torch.bfloat16):
        own = attention(q, k, v, mask)
        torchs = F.scaled_dot_product_attention(q, k, v, mask if mask is None or kind == "bool" else mask.bfloat16())
    own, torchs = gradients(own, q, k, v, grad), gradients(torchs, q, k, v, grad)
    for truth, mine, other in zip(exact, own, torchs, strict=True):
        assert (mine - truth).norm() <= 2 * (other - truth).norm() <= 0.02 * truth.norm()


def test_what_is_not_short_and_in_half_precision_is_left_to_torch():
    q, k, v, _ = operands(1, 1, 1500, 8)
    assert attention(q, k, v) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v) is None
        short = [t[:, :, :5] for t in (q, k, v)]
        assert (attention(*short) is not None) == half
        switch(False)
        try:
            assert attention(*short) is None
        finally:
            switch(True)
    assert torch.equal(layers.attention(*short), F.scaled_dot_product_attention(*short))


def test_a_scale_of_the_callers_own_is_taken():
    q, k, v, _ = operands(1, 2, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = layers.attention(q, k, v, scale=1.0)
    torch.testing.assert_close(found.float(), F.scaled_dot_product_attention(q, k, v, scale=1.0), rtol=0.05, atol=0.05)
