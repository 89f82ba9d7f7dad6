"""The feed-forward net of a transformer, second(activation(first(x))), with few passes over its wide middle.

Between the two layers stand the largest tensors of a transformer. Here the relu is part of the first product, its
derivative is written over the gradient, and an adapter is not run beside its layer: the product is taken with
W + scale B A, while only the factors get a gradient. In an autocast region with bfloat16 the products are in that
format, W + scale B A is summed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.fast.products import Linear, half_products, linear, outer, product, usable

FEW = 256  # rows below which updating the weights costs more than it saves


class _Layer(NamedTuple):
    """x weight' + bias, and + scale (x a') b' where it has an adapter."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0

    def updated(self) -> Tensor:
        """The weight with its update, [out, in]."""
        if self.a is None or self.b is None:
            return self.weight
        return torch.addmm(self.weight, self.b, self.a, alpha=self.scale)

    def gradients(self, wanted: tuple[bool, ...], rows: Tensor, grad: Tensor) -> list[Tensor | None]:
        """Those of weight, bias, a and b that are wanted, from rows [N, in] and the gradient [N, out] of the answers."""
        weight, bias, a, b = wanted
        return [
            outer(grad, rows).to(self.weight.dtype) if weight else None,
            grad.sum(0, dtype=self.weight.dtype) if bias else None,
            self._factor(linear(grad, self.b.t().to(grad.dtype)), rows) if a and self.b is not None else None,
            self._factor(grad, linear(rows, self.a.to(grad.dtype))) if b and self.a is not None else None,
        ]

    def _factor(self, left: Tensor, right: Tensor) -> Tensor:
        return outer(left, right).to(self.weight.dtype).mul(self.scale)


def feed_forward(x: Tensor, first: nn.Module, second: nn.Module, activation: str) -> Tensor | None:
    """second(activation(first(x))) of x [..., in], or None where the parts are to be run one by one.

    Args:
        first, second: `Linear`, also with a low-rank adapter; None for all other layers.
        activation: "relu" or "gelu" (exact).
    """
    one, two = _layer(first), _layer(second)
    if one is None or two is None or x.numel() < FEW * x.shape[-1] or not usable(one.weight, two.weight, autocast=True):
        return None
    if not torch.is_autocast_enabled("cpu"):
        return _FeedForward.apply(x, activation, *one, *two) if usable(x) else None
    if not half_products(x):
        return None
    with torch.autocast("cpu", enabled=False):
        return _FeedForward.apply(x.to(torch.bfloat16), activation, *one, *two)


def _layer(module: Any) -> _Layer | None:
    """What a layer computes, or None when it is not known to be a product."""
    if type(module) is Linear:
        return _Layer(module.weight, module.bias)
    if getattr(module, "affine", None) is not linear or not hasattr(module, "factors"):  # else an adapted `Linear`
        return None
    if module.merged is not None:
        return _Layer(module.merged, module.bias)
    a, b = module.factors()
    return _Layer(module.weight, module.bias, a, b, module.scale)


class _FeedForward(torch.autograd.Function):
    """`numbers` are the ten fields of two layers. What is kept of the middle is the answer of a relu, whose sign tells
    its derivative, or the input of a gelu."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, *numbers: Any) -> Tensor:
        first, second = _Layer(*numbers[:5]), _Layer(*numbers[5:])
        into, out = (weight.updated().to(x.dtype) for weight in (first, second))
        before, after = (None if b is None else b.to(x.dtype) for b in (first.bias, second.bias))
        kept = product(_rows(x), into, before, "relu" if activation == "relu" else "none")
        answer = product(kept if activation == "relu" else F.gelu(kept), out, after)
        ctx.save_for_backward(x, kept, into, out, *numbers[:4], *numbers[5:9])
        ctx.activation, ctx.scales = activation, (first.scale, second.scale)
        return torch.ops.aten._unsafe_view(answer, [*x.shape[:-1], len(out)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, into, out, *numbers = ctx.saved_tensors
        first, second = _Layer._make([*numbers[:4], ctx.scales[0]]), _Layer._make([*numbers[4:], ctx.scales[1]])
        if torch.is_grad_enabled():
            return _differentiable(ctx, grad, x, first, second)
        needed, after = ctx.needs_input_grad, _rows(grad)
        before = product(after, out.t())
        middle = kept if ctx.activation == "relu" else F.gelu(kept)
        for_second = second.gradients(needed[7:11], middle, after)
        if ctx.activation == "relu":
            torch.ops.aten.threshold_backward.grad_input(before, kept, 0, grad_input=before)
        else:
            torch.ops.aten.gelu_backward.grad_input(before, kept, grad_input=before)
        for_first = first.gradients(needed[2:6], _rows(x), before)
        for_x = product(before, into.t()).view_as(x) if needed[0] else None
        return for_x, None, *for_first, None, *for_second, None


def _rows(x: Tensor) -> Tensor:
    """[N, C] without gaps, as oneDNN wants it."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _differentiable(ctx: Any, grad: Tensor, x: Tensor, first: _Layer, second: _Layer) -> tuple[Tensor | None, ...]:
    """The gradients as a graph of their own, for second derivatives."""
    hidden = linear(x.float(), first.updated(), first.bias)
    hidden = F.relu(hidden) if ctx.activation == "relu" else F.gelu(hidden)
    answer = linear(hidden, second.updated(), second.bias).to(x.dtype)
    inputs = (x, None, *first[:4], None, *second[:4], None)
    asked = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(answer, asked, grad, create_graph=True))
    return tuple(next(found) if need else None for need in ctx.needs_input_grad)
