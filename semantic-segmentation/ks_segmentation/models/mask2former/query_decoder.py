"""Runs transformers' masked-attention decoder: queries in, class scores and mask embeddings out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.layers import attention as attend
from common.layers import heads_of, packed_attention
from ks_segmentation.models.mask2former.pixel_decoder import PixelFeatures, sine_encoding
from ks_segmentation.models.parts.queries import masks_of


class Decoded(NamedTuple):
    """The queries themselves and after each layer: L outputs.

    states: [L, B, Q, C] normalised; the class layer reads them.
    mask_embeddings: [L, B, Q, C] their product with the mask features is the mask.
    """

    states: Tensor
    mask_embeddings: Tensor


def decode(transformer: nn.Module, pixels: PixelFeatures) -> Decoded:
    """What the queries become when they look at the pixels, layer by layer.

    The masks of the layers in between are only looked at to steer the attention, so they take no part in
    the backward pass and are not kept; a loss that needs some of them computes those.

    Args:
        transformer: transformers' Mask2FormerTransformerModule; its modules are used, its forward is not.

    Source: Mask2Former, arXiv:2112.01527, section 3.2.1.
    """
    batch = pixels.mask_features.shape[0]
    memories = [_memory(transformer, i, level) for i, level in enumerate(pixels.levels)]
    sizes = [level.shape[-2:] for level in pixels.levels]
    query_place = transformer.queries_embedder.weight
    queries = transformer.queries_features.weight.expand(batch, -1, -1)  # [B, Q, C]
    decoder = transformer.decoder
    seen = [_shrunk(pixels.mask_features, size) for size in sizes]
    states, embeddings = [], []
    for i in range(len(decoder.layers) + 1):
        state = decoder.layernorm(queries)
        embedding = decoder.mask_predictor.mask_embedder(state)
        states.append(state)
        embeddings.append(embedding)
        if i < len(decoder.layers):
            level = i % len(memories)
            allowed = _allowed(embedding, seen[level])
            queries = _layer(decoder.layers[i], queries, query_place, *memories[level], allowed)
    return Decoded(torch.stack(states), torch.stack(embeddings))


def _memory(transformer: nn.Module, i: int, level: Tensor) -> tuple[Tensor, Tensor]:
    """(values, keys before projection) of one level, [B, h * w, C] each; the keys also know their place."""
    height, width = level.shape[-2:]
    level = transformer.input_projections[i](level)
    values = level.flatten(2).transpose(1, 2) + transformer.level_embed.weight[i]
    return values, values + sine_encoding(height, width, values.shape[-1], values.device).to(values.dtype)


@torch.no_grad()
def _shrunk(features: Tensor, size: torch.Size) -> Tensor:
    """Mask features [B, C, h, w] at another size. Their product with the embeddings is the resized mask: resizing is
    linear, and cheaper before the product, as all layers of one level share it."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def _allowed(embedding: Tensor, features: Tensor) -> Tensor:
    """[B, 1, Q, h * w] whether a query may look at a cell: inside its present mask, or anywhere if that is empty."""
    with torch.autocast(features.device.type, enabled=False):
        allowed = masks_of(embedding.float(), features).flatten(2) >= 0
    return (allowed | ~allowed.any(-1, keepdim=True)).unsqueeze(1)


def _layer(layer: nn.Module, queries: Tensor, place: Tensor, values: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
    """One decoder layer: masked attention to the pixels, attention among queries, feed-forward net."""

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, layer.dropout, layer.training) if layer.dropout else x

    looked = cross_attention(layer.cross_attn, queries + place, keys, values, allowed)
    queries = layer.cross_attn_layer_norm(queries + drop(looked))
    queries = layer.self_attn_layer_norm(queries + drop(self_attention(layer.self_attn, queries, place)))
    return layer.final_layer_norm(queries + drop(layer.fc2(drop(F.relu(layer.fc1(queries))))))


def cross_attention(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor
) -> Tensor:
    """[B, Q, C] what the queries [B, Q, C] see in [B, S, C]; `allowed` [B, 1, Q, S] holds True where they may look."""
    if type(attention) is not nn.MultiheadAttention:  # adapted: it knows how to run itself
        blocked = ~allowed.expand(-1, attention.num_heads, -1, -1).flatten(0, 1)
        out, _ = attention(
            query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), attn_mask=blocked, need_weights=False
        )
        return out.transpose(0, 1)
    return packed_attention(attention, query, key, value, allowed)


def self_attention(attention: nn.Module, queries: Tensor, place: Tensor) -> Tensor:
    """[B, Q, C] what the queries see in each other; transformers' Mask2FormerAttention, without its weights."""
    placed = queries + place
    heads = attention.num_heads
    q, k, v = attention.q_proj(placed), attention.k_proj(placed), attention.v_proj(queries)
    rate = attention.dropout if attention.training else 0.0
    seen = attend(*(heads_of(t, heads) for t in (q, k, v)), dropout=rate)
    return attention.out_proj(seen.transpose(1, 2).flatten(2))
