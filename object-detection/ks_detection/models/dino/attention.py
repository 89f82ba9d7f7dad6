"""The attention layer around the multi-scale deformable sampling op."""

import math

import torch
from ms_deform_attn import ms_deform_attn
from torch import Tensor, nn

from common.layers import Linear, short_softmax
from ks_detection.models.parts.levels import Levels


class DeformableAttention(nn.Module):
    """Every query reads a few points of every level around its reference (arXiv:2010.04159)."""

    def __init__(self, width: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = Linear(width, heads * levels * points * 2)
        self.attention_weights = Linear(width, heads * levels * points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as rings: head h looks in direction h, point p at distance p + 1; weights uniform."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        bias = ring.view(-1, 1, 1, 2) * distance.expand(self.heads, self.levels, -1, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())

    def forward(self, query: Tensor, references: Tensor, memory: Tensor, levels: Levels) -> Tensor:
        """[B, Q, D].

        Args:
            query: [B, Q, D], positions already added.
            references: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes, in parts of the padded level; or what `spread`
                made of points, for layers that share them.
            memory: [B, S, D] tokens that are read.
        """
        b, q, _ = query.shape
        value = self.value_proj(memory)
        if levels.padded:
            value = value.masked_fill(levels.mask[..., None], 0.0)
        value = value.view(b, memory.shape[1], self.heads, -1)
        grid = (b, q, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).float()
        weights = short_softmax(self.attention_weights(query).float().view(b, q, self.heads, -1)).view(grid)
        if references.dim() == 4 and references.shape[-1] == 4:
            centres, sides = references.split(2, dim=-1)
            places, scale = self.spread(centres), self.spread(sides * (0.5 / self.points))
        else:
            places = references if references.dim() == 3 else self.spread(references)
            scale = (1.0 / levels.shapes.flip(-1))[None, :, None].expand(grid[2:] + (2,)).flatten()  # x, y
        locations = torch.addcmul(places, offsets, scale).view(*grid, 2)
        sampled = ms_deform_attn(value, levels.shapes, levels.starts, locations, weights)
        return self.output_proj(sampled)

    def spread(self, points: Tensor) -> Tensor:
        """[B, Q, heads L P 2] of [B, Q, L, 2]: adding rows of two numbers is ten times slower than adding long rows."""
        b, q, levels, _ = points.shape
        of_head = points[:, :, :, None].expand(b, q, levels, self.points, 2).reshape(b, q, 1, -1)
        return of_head.expand(b, q, self.heads, -1).flatten(2)  # in two steps: copies of two numbers are slow too
