"""The layers in which models spend their time: as torch has them, or from `common.fast` where that is there.

The environment variable KS_FAST=0 switches `common.fast` off. Names and parameters are the same either way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

wanted = os.environ.get("KS_FAST", "1") != "0" and find_spec("common.fast") is not None
fast = import_module("common.fast") if wanted else None

Linear: type[nn.Linear] = fast.Linear if fast else nn.Linear
linear = fast.linear if fast else F.linear


def sum_first(x: Tensor, weight: Tensor, rank: int) -> bool:
    """Whether x (W + B A)' is to be computed and not x W' + (x A') B'; x [..., in], W [out, in], rank of B A."""
    return fast is not None and fast.sum_first(x, weight, rank)


def short_softmax(x: Tensor) -> Tensor:
    """Softmax over a last dimension of a dozen or so."""
    return fast.short_softmax(x) if fast else x.softmax(-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:  # fmt: skip
    """`F.scaled_dot_product_attention`."""
    short = fast.attention(q, k, v, mask, scale) if fast and not dropout else None
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale) if short is None else short


def packed_attention(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, apart: int = 0
) -> Tensor:  # fmt: skip
    """[B, Q, C] what a plain nn.MultiheadAttention gives, its weights left out.

    Args:
        query: [B, Q, C]; key, value: [B, S, C]; allowed: bool, expands to [B, H, Q, S], True where it may look.
        apart: queries and keys are the same positions. As many, the first, are seen by none of the others, who see
            each other; then `allowed` is [Q, S], and only its first rows are read.
    """
    parts = zip((query, key, value), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    q, k, v = (heads_of(linear(x, weight, bias), layer.num_heads) for x, weight, bias in parts)
    dropout = layer.dropout if layer.training else 0.0
    if apart and allowed is not None:
        first = attention(q[:, :, :apart], k, v, allowed[:apart], dropout)
        others = attention(q[:, :, apart:], k[:, :, apart:], v[:, :, apart:], None, dropout)
        seen = torch.cat([first, others], dim=2)
    else:
        seen = attention(q, k, v, allowed, dropout)
    return layer.out_proj(seen.transpose(1, 2).flatten(2))


def heads_of(x: Tensor, count: int) -> Tensor:
    """[B, H, T, D] of [B, T, H D]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def feed_forward(
    x: Tensor, first: nn.Module, second: nn.Module, activation: str, dropout: float = 0.0
) -> Tensor:  # fmt: skip
    """second(activation(first(x))) of x [..., in]; the activation is "relu" or "gelu" (exact).

    Args:
        first, second: a `Linear` or any other layer; adapted ones too.
        dropout: share of the hidden values that are dropped.
    """
    fused = fast.feed_forward(x, first, second, activation) if fast and not dropout else None
    if fused is not None:
        return fused
    hidden = first(x)
    hidden = F.relu(hidden, inplace=True) if activation == "relu" else F.gelu(hidden)
    return second(F.dropout(hidden, dropout) if dropout else hidden)


def channels_last(images: Tensor, exact: bool = True) -> Tensor:
    """The same images or maps [B, C, H, W], laid out as convolutions on this device want them.

    Args:
        exact: torch's convolutions are to round as they do on other layouts; `convolution` takes no notice.
    """
    return fast.channels_last(images, exact) if fast else images


def paired(a: Tensor, b: Tensor) -> Tensor:
    """[..., 2 D] a0, b0, a1, b1 and so on, of [..., D] each."""
    pairs = fast.paired(a, b) if fast else None
    return torch.stack([a, b], -1).flatten(-2) if pairs is None else pairs


def convolution(layer: nn.Module, maps: Tensor) -> Tensor:
    """layer(maps) of an nn.Conv2d or what stands in its place, [B, C, H, W]; best on `channels_last(maps, exact=False)`."""
    answer = fast.convolution(layer, maps) if fast else None
    return layer(maps) if answer is None else answer


def conv_norm(
    conv: nn.Conv2d, norm: Any, x: Tensor, added: Tensor | None = None, relu: bool = False, exact: bool = False
) -> Tensor:  # fmt: skip
    """relu(norm(conv(x)) + added): the scale multiplies the kernel, not the map.

    Args:
        norm: has `buffers()` and `scale_shift()`, the [O] factor and [O] offset that it amounts to.
        added: [B, O, H, W].
        exact: float32 is to be rounded as by torch's convolutions.
    """
    answer = fast.folded(conv, norm, x, added, relu, exact) if fast else None
    if answer is not None:
        return answer
    scale, shift = norm.scale_shift()
    answer = F.conv2d(
        x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    answer = answer if added is None else answer.add_(added)
    return F.relu(answer, inplace=True) if relu else answer


def use_fast_linears(model: nn.Module) -> None:
    """Makes every plain linear layer of `model` a `Linear`; parameters, names and answers stay."""
    if fast:
        fast.use_fast_linears(model)


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next step; returns whether the C allocator obeyed."""
    return fast is not None and fast.keep_freed_memory()


def kept(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The last results of a function of sizes; none while a model is traced, when sizes are symbols."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        cached = lru_cache(maxsize=count)(function)

        @wraps(function)
        def call(*sizes: Any) -> Any:
            return function(*sizes) if torch.compiler.is_compiling() else cached(*sizes)

        return call

    return wrapped
