"""Feature levels: projected to one width, and flattened to one row of tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ks_detection.models.parts.padding import resize_mask, valid_ratio


class Levels(NamedTuple):
    """How the flattened tokens of all feature levels lie.

    sizes: (height, width) per level, as numbers; shapes: [L, 2] the same as a tensor; starts: [L] first token
    of each level; ratios: [B, L, 2] part (x, y) of each level that is image; mask: [B, S] True on padding;
    padded: whether there may be any.
    """

    sizes: tuple[tuple[int, int], ...]
    shapes: Tensor
    starts: Tensor
    ratios: Tensor
    mask: Tensor
    padded: bool = True


class Tokens(NamedTuple):
    """All levels, flattened: content and positions [B, S, D], and how they lie."""

    content: Tensor
    positions: Tensor
    levels: Levels


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """[height * width, 2] the centre (x, y) of each cell of a level, in cells."""
    y, x = (torch.arange(side, device=device) + 0.5 for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def input_projections(channels: list[int], config: Any, groups: int = 0) -> nn.ModuleList:
    """One projection per level: 1x1 convolutions of the backbone's maps, then strided 3x3 ones.

    groups: of the norms; 0 takes 32 (published), fewer for a narrow model.
    """
    width, projections = config.hidden_dim, []
    for level in range(config.num_feature_levels):
        if level < len(channels):
            conv = nn.Conv2d(channels[level], width, 1)
        else:
            conv = nn.Conv2d(channels[-1] if level == len(channels) else width, width, 3, 2, 1)
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)
        projections.append(nn.Sequential(conv, nn.GroupNorm(groups or min(32, width // 4), width)))
    return nn.ModuleList(projections)


def project_levels(projections: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    """All levels at one width: projected maps, then maps made of the last map and of each other."""
    source, levels = maps[-1], []
    for level, projection in enumerate(projections):
        if level > len(maps):
            source = levels[-1]
        levels.append(projection(maps[level] if level < len(maps) else source))
    return levels


def lay_out(maps: list[Tensor], mask: Tensor) -> tuple[Tensor, list[Tensor], Levels]:
    """([B, S, D] tokens, [B, h, w] mask per level, how they lie) of maps [B, D, h, w] and the pixel mask [B, H, W]."""
    sizes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
    masks = [resize_mask(mask, h, w) for h, w in sizes]
    shapes = torch.tensor(sizes, dtype=torch.long, device=mask.device)
    counts = shapes.prod(1)
    ratios = torch.stack([valid_ratio(m) for m in masks], dim=1)
    tokens = torch.cat([m.flatten(1) for m in masks], dim=1)
    padded = torch.compiler.is_compiling() or bool(tokens.any())  # a graph must not hang on a value
    levels = Levels(sizes, shapes, counts.cumsum(0) - counts, ratios, tokens, padded)
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1), masks, levels
