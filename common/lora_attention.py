"""The adapter of nn.MultiheadAttention, whose projections are parameters and not layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from common.lora import Adapter, LoRALinear


class LoRAMultiheadAttention(Adapter, nn.MultiheadAttention):
    """nn.MultiheadAttention with adapters on the q, k, v projections (packed) and on the output projection.

    Same arguments, shapes and results as nn.MultiheadAttention. A is [3r, E] and B [3E, r] beside
    `in_proj_weight`; `out_proj` becomes a LoRALinear. The base must have one embedding size for q, k and v.
    """

    def __init__(self, base: nn.MultiheadAttention, rank: int, alpha: float = 1.0) -> None:
        nn.Module.__init__(self)
        assert base._qkv_same_embed_dim, "adapters need q, k and v of one size"
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

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
                average_attn_weights=True, is_causal=False):  # fmt: skip
        """(output, None) with output shaped like `query`; the attention weights are not formed.

        Raises:
            ValueError: `need_weights=True` in an unmerged forward cannot be served without them, so it falls
                back to the merged product and PyTorch's own function.
        """
        if need_weights or self.merged is not None:
            return self._plain(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value))
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (self._heads(self._project(t, i)) for i, t in enumerate((query, key, value)))
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        out = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=self.dropout if self.training else 0.0, is_causal=is_causal and mask is None
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # [B, L, E]
        if not self.batch_first:
            out = out.transpose(0, 1)
        return (out if batched else out.squeeze(0 if self.batch_first else 1)), None

    def _project(self, x: Tensor, i: int) -> Tensor:
        weight = self.in_proj_weight.chunk(3)[i]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[i]
        update = F.linear(F.linear(x, self.lora_A.chunk(3)[i]), self.lora_B.chunk(3)[i])
        if self.past_A.shape[0]:
            update = update + F.linear(F.linear(x, self.past_A), self.past_B.chunk(3)[i])
        return F.linear(x, weight, bias) + self.scale * update

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B, H, L, E/H]

    def _mask(self, attn_mask, key_padding_mask, q: Tensor, k: Tensor):
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

    def _plain(self, query, key, value, key_padding_mask, need_weights, attn_mask, average, is_causal):
        transpose = self.batch_first and query.dim() == 3
        if transpose:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        weight = self.in_proj_weight + self.delta() if self.merged is None else self.merged
        out_proj = self.out_proj
        out_weight = out_proj.weight + out_proj.delta() if out_proj.merged is None else out_proj.merged
        out, attention = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, weight, self.in_proj_bias, None, None,
            self.add_zero_attn, self.dropout, out_weight, out_proj.bias, training=self.training,
            key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
            average_attn_weights=average, is_causal=is_causal and attn_mask is not None and not need_weights,
        )  # fmt: skip
        return (out.transpose(0, 1) if transpose else out), attention

