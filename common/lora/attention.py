"""The adapter of nn.MultiheadAttention, whose projections are parameters and not layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.layers import attention, sum_first
from common.lora.layers import Adapter, LoRALinear

Attended = tuple[Tensor, Tensor | None]  # the output, and the attention weights where they are wanted


class LoRAMultiheadAttention(Adapter, nn.MultiheadAttention):
    """nn.MultiheadAttention with adapters on the q, k, v projections (packed) and on the output projection.

    Same arguments, shapes and results as nn.MultiheadAttention. A is [3r, E] and B [3E, r] beside
    `in_proj_weight`; `out_proj` becomes a LoRALinear. The base must have one embedding size for q, k and v.
    """

    out_proj: LoRALinear  # type: ignore[assignment]  # torch's is another kind of nn.Linear

    def __init__(self, base: nn.MultiheadAttention, rank: int, alpha: float = 1.0) -> None:
        nn.Module.__init__(self)
        if not base._qkv_same_embed_dim or base.bias_k is not None:
            raise UserError("adapters go on attention whose q, k and v have one size and no extra bias (bias_k).")
        self.plain = (base,)
        for name in ("embed_dim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn"):
            setattr(self, name, getattr(base, name))
        self.kdim = self.vdim = base.embed_dim
        self._qkv_same_embed_dim = True
        self.bias_k = self.bias_v = None
        self.in_proj_weight, self.in_proj_bias = base.in_proj_weight, base.in_proj_bias
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self.init_adapter(3 * self.embed_dim, self.embed_dim, rank, alpha, parts=3)
        self.out_proj = LoRALinear(base.out_proj, rank, alpha)
        self.train(base.training)

    def base_weight(self) -> Tensor:
        return self.in_proj_weight

    def unadapted(self, weight: Tensor) -> nn.Module:
        layer = self.plain[0]
        layer.in_proj_weight, layer.in_proj_bias, layer.out_proj = weight, self.in_proj_bias, self.out_proj
        return layer.train(self.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Attended:  # fmt: skip
        """(output, attention weights or None), as nn.MultiheadAttention gives them."""
        if self.add_zero_attn or self.merged is not None:
            return self._plain(
                query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal and attn_mask is not None and not need_weights,
            )  # fmt: skip
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value))
        if self.batch_first:
            query, key, value = _length_first(query, key, value)
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q)
        attend = self._attend_and_tell if need_weights else self._attend
        out, weights = attend(q, k, v, mask, is_causal and mask is None)  # [L * B, E], [B, H, L, S]
        out = self.out_proj(out).view(*q.shape[:2], -1)
        if self.batch_first:
            out = out.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Attended:
        dropout = self.dropout if self.training else 0.0
        q, k, v = (self._heads(t) for t in (q, k, v))
        if causal:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            out = attention(q, k, v, mask, dropout)
        return out.permute(2, 0, 1, 3).reshape(-1, self.embed_dim), None

    def _attend_and_tell(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Attended:
        """The same with the attention weights, step by step as torch does it, so that the bits are torch's."""
        (length, batch, _), source = q.shape, k.shape[0]
        q, k, v = (t.view(-1, batch * self.num_heads, self.head_dim).transpose(0, 1) for t in (q, k, v))
        q = q * math.sqrt(1 / self.head_dim)
        if mask is None:
            weights = torch.bmm(q, k.transpose(1, 2))
        else:
            mask = mask.expand(batch, self.num_heads, length, source).flatten(0, 1)
            weights = torch.baddbmm(mask, q, k.transpose(1, 2))
        weights = F.dropout(weights.softmax(-1), self.dropout, self.training)
        out = torch.bmm(weights, v).transpose(0, 1).reshape(-1, self.embed_dim)
        return out, weights.view(batch, self.num_heads, length, source)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, [L, B, E] each; equal inputs share one product, as in torch."""
        if query is key and key is value:
            q, k, v = (t.contiguous() for t in self._linear(query, 0, 3).chunk(3, dim=-1))
            return q, k, v
        if key is value:
            k, v = self._linear(key, 1, 3).chunk(2, dim=-1)
            return self._linear(query, 0, 1), k.contiguous(), v.contiguous()
        return self._linear(query, 0, 1), self._linear(key, 1, 2), self._linear(value, 2, 3)

    def _linear(self, x: Tensor, first: int, last: int) -> Tensor:
        """The packed projections `first` up to `last` (q 0, k 1, v 2) with their updates."""
        rows = slice(first * self.embed_dim, last * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        pieces = list(zip(self.lora_A.chunk(3)[first:last], self.lora_B.chunk(3)[first:last], strict=True))
        if not len(self.past_A) and sum_first(x, self.in_proj_weight[: self.embed_dim], self.rank):
            update = torch.cat([b @ a for a, b in pieces])
            return F.linear(x, torch.add(self.in_proj_weight[rows], update, alpha=self.scale), bias)
        update = torch.cat([F.linear(F.linear(x, a), b) for a, b in pieces], dim=-1)
        if self.past_A.shape[0]:
            update = update + F.linear(F.linear(x, self.past_A), self.past_B[rows])
        return F.linear(x, self.in_proj_weight[rows], bias) + self.scale * update

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)  # [L, B, E] -> [B, H, L, E/H]

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """One additive mask [B, H or 1, L, S] from torch's two kinds, or None."""
        masks = []
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
            masks.append(attn_mask)
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None, :])
        total = None
        for mask in masks:
            if mask.dtype.is_floating_point:
                mask = mask.to(q.dtype)
            else:  # torch: True means "may not be seen"
                mask = q.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
            total = mask if total is None else total + mask
        return total

    def _plain(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Attended:
        """Torch's own function on the updated weights."""
        transpose = self.batch_first and query.dim() == 3
        if transpose:
            query, key, value = _length_first(query, key, value)
        weight = self.in_proj_weight + self.delta() if self.merged is None else self.merged
        out_proj = self.out_proj
        out_weight = out_proj.weight + out_proj.delta() if out_proj.merged is None else out_proj.merged
        out, attention = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, weight, self.in_proj_bias, None, None,
            self.add_zero_attn, self.dropout, out_weight, out_proj.bias, self.training, **options,
        )  # fmt: skip
        return (out.transpose(0, 1) if transpose else out), attention


def _length_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, E] -> [L, B, E]. Equal inputs stay one tensor: torch then takes one product for both, and its bits."""
    same = query is key, key is value
    query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    key = query if same[0] else key
    return query, key, (key if same[1] else value)
