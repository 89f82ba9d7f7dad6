"""Matrix products by oneDNN, and a softmax for short rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

SMALL = 2**21  # multiplications below which calling oneDNN costs more than it saves
_on = True


def switch(on: bool) -> None:
    """Turns what this package computes off and on again within a process; for comparisons."""
    global _on
    _on = on


def running() -> bool:
    """Whether this package is to compute: not switched off, and no graph is being made."""
    return _on and not torch.compiler.is_compiling()


class _Product(torch.autograd.Function):
    """x W' + b by oneDNN, its gradients too (written with `linear`, so that they can be differentiated again)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = product(x.reshape(-1, x.shape[-1]), weight, bias)
        # not a view, so that what follows may write into it without a copy in the backward pass
        return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], weight.shape[0]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).contiguous()
        for_x = linear(rows, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        for_weight = outer(rows, x.reshape(-1, x.shape[-1]).contiguous()) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """x W' + b by oneDNN for float32 matrices, then "none" or "relu"; without a derivative."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a' b of contiguous factors; the product is turned so that the narrower factor is the one that gets copied.

    Contiguous, because oneDNN takes a slice of a wider matrix to its reference kernel, 1000 times slower.
    """
    return linear(a.t(), b.t()) if a.shape[1] <= b.shape[1] else linear(b.t(), a.t()).t()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b like `F.linear`, up to rounding; float32 on a CPU goes through oneDNN instead of MKL.

    MKL reaches half of oneDNN's speed on AMD processors of 2024 (200 against 450 GFLOP/s on two cores). Small products are
    torch's, whose overhead is smaller.
    """
    if not running() or x.numel() * len(weight) < SMALL or not usable(x, weight):  # sizes in a graph may be symbols
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


def half_products(x: Tensor) -> bool:
    """Whether an autocast region makes bfloat16 products of x that oneDNN can do."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0
    return fits and torch.get_autocast_dtype("cpu") is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def usable(*tensors: Tensor, autocast: bool = False) -> bool:
    """Whether products of these go through oneDNN: float32 on a CPU, not empty, outside compilation, and outside autocast
    unless that is allowed."""
    if not running() or any(t.device.type != "cpu" or t.dtype != torch.float32 or t.numel() == 0 for t in tensors):
        return False
    if torch.is_autocast_enabled("cpu") and not autocast:
        return False
    flags = torch.backends.mkldnn
    return bool(flags.is_available() and flags.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def sum_first(x: Tensor, weight: Tensor, rank: int) -> bool:
    """Whether x (W + B A)' takes fewer multiplications than x W' + (x A') B'; gradients of A, B and x counted where there
    are any. So it is where the rank is high for the layer: small models, and no gradient."""
    if not usable(x, weight):
        return False
    rows, (out, inp) = x.numel() // weight.shape[1], weight.shape
    if not torch.is_grad_enabled():
        return out * inp < rows * (out + inp)
    return out * inp * (rows + 3 * rank) < 3 * rows * rank * (out + inp)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = (x - x.amax(-1, keepdim=True)).exp_()
        out /= out.sum(-1, keepdim=True)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        weighted = out * grad
        return weighted - out * weighted.sum(-1, keepdim=True)


def short_softmax(x: Tensor) -> Tensor:
    """Softmax over a last dimension of a dozen or so, where torch's own kernel on a CPU is five times slower."""
    return _Softmax.apply(x) if usable(x, autocast=True) else x.softmax(-1)


class Linear(nn.Linear):
    """An nn.Linear that computes with `linear`; same parameters and names."""

    affine = staticmethod(linear)  # adapters on this layer compute the base product in the same way

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_fast_linears(model: nn.Module) -> None:
    """Makes every plain linear layer of `model` a `Linear`; parameters, names and answers stay."""
    for module in model.modules():
        if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear):
            module.__class__ = Linear
