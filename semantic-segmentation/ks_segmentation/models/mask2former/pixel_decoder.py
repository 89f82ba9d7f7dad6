"""Runs transformers' pixel decoder with the compiled deformable attention: features in, mask features out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ms_deform_attn import ms_deform_attn
from torch import Tensor, nn

from common.layers import channels_last, convolution, feed_forward, kept, short_softmax


class PixelFeatures(NamedTuple):
    """What the query decoder reads.

    levels: three maps [B, C, h, w] at strides 32, 16 and 8.
    mask_features: [B, C, H / 4, W / 4]; a mask is the product of a query's embedding with it.
    """

    levels: list[Tensor]
    mask_features: Tensor


class _Grid(NamedTuple):
    shapes: Tensor  # [L, 2] height, width
    starts: Tensor  # [L]
    cells: Tensor  # [heads * L * points * 2] one cell of the level in 0..1, x and y
    places: Tensor  # [1, S, heads * L * points * 2] centre of every cell in 0..1, x and y, repeated


@kept(16)
def _grid(shapes: tuple[tuple[int, int], ...], heads: int, count: int, device: torch.device) -> _Grid:
    with torch.inference_mode(False):  # kept, and later used in training
        points = []
        for height, width in shapes:
            y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
            points.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).view(-1, 2))
        spatial = torch.tensor(shapes, device=device)
        counts = spatial.prod(1)
        cells = (1 / spatial.flip(1).float())[:, None].expand(heads, -1, count, 2).flatten()
        # written out, because adding rows of two numbers is several times slower than adding long rows
        places = torch.cat(points)[None].repeat(1, 1, heads * len(shapes) * count)
        return _Grid(spatial, counts.cumsum(0) - counts, cells, places)


@kept(16)
def sine_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """[H * W, channels] code of each cell's place: sines of y, then of x, at growing wave lengths.

    Source: Carion et al., 2020, arXiv:2005.12872, appendix A.4; temperature 10000, coordinates in 0..2 pi.
    """
    with torch.inference_mode(False):
        half = channels // 2
        power = 2 * (torch.arange(half, device=device, dtype=torch.float32) // 2) / half
        waves = 10000**power

        def code(count: int) -> Tensor:  # [count, half]
            place = torch.arange(1, count + 1, device=device, dtype=torch.float32)
            angle = (place / (count + 1e-6) * 2 * math.pi)[:, None] / waves
            return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

        y, x = code(height)[:, None], code(width)[None]
        return torch.cat([y.expand(height, width, half), x.expand(height, width, half)], -1).flatten(0, 1)


def pixel_features(decoder: nn.Module, features: list[Tensor]) -> PixelFeatures:
    """Multi-scale features and mask features from the backbone's four maps, in float32.

    In a bfloat16 autocast region the products are in bfloat16 (published: all in float32, as the published operator has
    no half precision); tokens, places and weights of the attention stay in float32.

    Args:
        decoder: transformers' Mask2FormerPixelDecoder; its modules are used, its forward is not.
        features: maps at strides 4, 8, 16 and 32.

    Source: Mask2Former, arXiv:2112.01527, section 3.2.2.
    """
    kind = features[0].device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.bfloat16
    with torch.autocast(kind, torch.bfloat16, enabled=half):
        features = [channels_last(feature.float(), exact=False) for feature in features]
        maps = [
            _run(project, feature) for project, feature in zip(decoder.input_projections, features[:0:-1], strict=True)
        ]
        shapes = tuple((m.shape[2], m.shape[3]) for m in maps)
        attention = decoder.encoder.layers[0].self_attn
        grid = _grid(shapes, attention.n_heads, attention.n_points, maps[0].device)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1).float()  # [B, S, C]
        places = torch.cat(
            [
                sine_encoding(h, w, tokens.shape[2], tokens.device) + decoder.level_embed[i]
                for i, (h, w) in enumerate(shapes)
            ]
        )
        for layer in decoder.encoder.layers:
            tokens = _layer(layer, tokens, places, grid)
        split = tokens.split([h * w for h, w in shapes], 1)
        levels = [t.transpose(1, 2).unflatten(2, shape) for t, shape in zip(split, shapes, strict=True)]
        lateral = _run(decoder.adapter_1, features[0])
        # in one memory format with `lateral`, or the largest maps would be copied back and forth
        finest = channels_last(levels[-1], exact=False)
        finest = finest.contiguous() if finest is levels[-1] else finest
        finest = F.interpolate(finest, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        mixed = _run(decoder.layer_1, lateral + finest)
        return PixelFeatures(levels, convolution(decoder.mask_projection, mixed).float())


def _run(layers: nn.Sequential, maps: Tensor) -> Tensor:
    """A convolution and what follows it."""
    return layers[1:](convolution(layers[0], maps))


def _layer(layer: nn.Module, tokens: Tensor, places: Tensor, grid: _Grid) -> Tensor:
    """One encoder layer: deformable attention and a feed-forward net, each with its norm behind it."""

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, layer.dropout, layer.training) if layer.dropout else x

    tokens = layer.self_attn_layer_norm(tokens + drop(_attention(layer.self_attn, tokens, places, grid)))
    if layer.dropout and layer.training:
        hidden = layer.fc2(drop(F.relu(layer.fc1(tokens))))
    else:
        hidden = feed_forward(tokens, layer.fc1, layer.fc2, "relu")
    return layer.final_layer_norm(tokens + drop(hidden))


def _attention(attention: nn.Module, tokens: Tensor, places: Tensor, grid: _Grid) -> Tensor:
    batch, count, _ = tokens.shape
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    query = tokens + places
    value = attention.value_proj(tokens).view(batch, count, heads, -1)
    weights = short_softmax(attention.attention_weights(query).float().view(batch, count, heads, levels * points))
    locations = torch.addcmul(grid.places, attention.sampling_offsets(query).float(), grid.cells)
    shape = (batch, count, heads, levels, points)
    sampled = ms_deform_attn(value, grid.shapes, grid.starts, locations.view(*shape, 2), weights.view(shape))
    return attention.output_proj(sampled)
