"""Runs transformers' Swin blocks with fewer copies and no products of padding: the same modules, the same answers.

For speed only: without `common.fast` the blocks keep transformers' own forward. Why detectors have another Swin stands in
`ks_detection.models.parts.swin`.

Letters in shapes: N tokens, W windows of P places, all images of the batch together; H heads of D features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.layers import Linear, feed_forward, linear


class _Order(NamedTuple):
    """How rows lie in windows. After the rows of the N tokens come those of one more, which stands for all padding.

    forth: [places] the row that each place shows; back: [rows] a place that shows it, padding included.
    padded: [kinds, n] the n places of each of padding's rows.
    """

    forth: Tensor
    back: Tensor
    padded: Tensor


class _Layout(NamedTuple):
    """For one size of map: how queries, keys and values lie (3 W H P rows of D), how answers lie (W H P), and the
    additive mask [W, 1, P, P] between parts that the shift put side by side, or None."""

    inputs: _Order
    answers: _Order
    mask: Tensor | None


@lru_cache(maxsize=64)
def _layout(batch: int, height: int, width: int, window: int, shift: int, heads: int, device: torch.device) -> _Layout:
    with torch.inference_mode(False):  # kept, and later used in training
        count = batch * height * width
        tokens = torch.arange(count, device=device).view(batch, height, width)
        tokens = F.pad(tokens, (0, -width % window, 0, -height % window), value=count)
        mask = None
        if shift:
            edges, sides = (window, shift), tokens.shape[1:]
            regions = [sum((torch.arange(n, device=device) >= n - edge).long() for edge in edges) for n in sides]
            regions = _cut((3 * regions[0][:, None] + regions[1]).expand_as(tokens), window)
            mask = ((regions[:, None] != regions[:, :, None]) * -100.0)[:, None]
            tokens = tokens.roll((-shift, -shift), (1, 2))
        tokens = _cut(tokens, window)
        return _Layout(_order(tokens, count, 3, heads), _order(tokens, count, 1, heads), mask)


def _cut(maps: Tensor, window: int) -> Tensor:
    """[W, P] windows of maps [B, height, width] whose sides divide by `window`."""
    return maps.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).reshape(-1, window * window)


def _order(tokens: Tensor, count: int, parts: int, heads: int) -> _Order:
    """Rows [token, part, head] shown in places [part, window, head, place]."""
    kinds = torch.arange(parts * heads, device=tokens.device).view(parts, 1, heads, 1)
    forth = tokens[:, None] * (parts * heads) + kinds  # [parts, W, H, P]
    places = torch.arange(forth.numel(), device=tokens.device).view_as(forth)
    padded = places.transpose(1, 2)[..., tokens == count].flatten(0, 1)
    back = forth.new_empty((count + (padded.numel() > 0)) * parts * heads)
    back[forth.flatten()] = places.flatten()
    return _Order(forth.flatten(), back, padded)


class _ToWindows(torch.autograd.Function):
    """[places, D] of [rows, D]. Its derivative reads through `back`, which is faster than adding up row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, order: _Order) -> Tensor:
        ctx.order = order
        return x.index_select(0, order.forth)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, padded = grad.index_select(0, ctx.order.back), ctx.order.padded
        if padded.numel():
            rows[-len(padded) :] = grad.index_select(0, padded.flatten()).unflatten(0, padded.shape).sum(1)
        return rows, None


class _FromWindows(torch.autograd.Function):
    """[rows, D] of [places, D], without the rows of padding, whose places get no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, order: _Order) -> Tensor:
        ctx.order = order
        return x.index_select(0, order.back[: len(order.back) - len(order.padded) * (order.padded.numel() > 0)])

    @staticmethod
    def backward(ctx, grad: Tensor):
        places = grad.index_select(0, ctx.order.forth.clamp(max=len(grad) - 1))
        return places.index_fill_(0, ctx.order.padded.flatten(), 0.0), None


def _block(self: nn.Module, x: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **_):
    """The forward of transformers' SwinLayer: [B, height * width, C] of the same, and no attention weights."""
    if torch.compiler.is_compiling():  # places of windows cannot be listed for sizes that are symbols
        return _fast_layer()[0].forward(self, x, input_dimensions, always_partition=always_partition)
    if not always_partition:
        self.set_shift_and_window_size(input_dimensions)
    seen = self.dropout(_attention(self, self.layernorm_before(x), *input_dimensions))
    x = x + self.drop_path(seen)
    return x + self.dropout(feed_forward(self.layernorm_after(x), self.mlp.fc1, self.mlp.fc2, "gelu")), None


def _attention(self: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
    attention, (batch, _, channels) = self.attention, x.shape
    heads, places = attention.num_attention_heads, self.window_size**2
    layout = _layout(batch, height, width, int(self.window_size), int(self.shift_size), heads, x.device)
    rows = x.flatten(0, 1)
    if layout.inputs.padded.numel():
        rows = F.pad(rows, (0, 0, 0, 1))  # zeros, so that padding's query, key and value are the biases
    rows = _projected(attention, rows).view(-1, channels // heads)
    q, k, v = _ToWindows.apply(rows, layout.inputs).view(3, -1, places, channels // heads)  # [W H, P, D]
    bias = attention.relative_position_bias()  # [1, H, P, P]
    bias = bias if layout.mask is None else bias + layout.mask.to(bias.dtype)
    bias = bias.expand(len(q) // heads, -1, -1, -1).reshape(-1, places, places)
    chance = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=attention.scaling).softmax(-1)
    chance = F.dropout(chance, attention.attention_dropout, self.training) if attention.attention_dropout else chance
    seen = torch.bmm(chance.to(v.dtype), v).view(-1, channels // heads)
    return attention.o_proj(_FromWindows.apply(seen, layout.answers).view_as(x))


def _projected(attention: nn.Module, rows: Tensor) -> Tensor:
    """[N, 3 C]: queries, keys and values, in one product where no adapter is in the way."""
    layers = attention.q_proj, attention.k_proj, attention.v_proj
    if any(type(layer) is not Linear for layer in layers):
        return torch.cat([layer(rows) for layer in layers], -1)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return linear(rows, torch.cat([layer.weight for layer in layers]), bias)


@lru_cache(maxsize=1)
def _fast_layer() -> tuple[type, type]:
    from transformers.models.swin.modeling_swin import SwinLayer  # takes seconds to import

    return SwinLayer, type("SwinBlock", (SwinLayer,), {"forward": _block, "__module__": __name__})


def use_fast_blocks(network: nn.Module) -> None:
    """Gives every Swin block in `network` the forward above. Blocks of transformers 4, which name their layers
    otherwise, keep their own."""
    plain, fast = _fast_layer()
    for module in network.modules():
        if type(module) is plain and hasattr(module.attention, "q_proj"):
            module.__class__ = fast
