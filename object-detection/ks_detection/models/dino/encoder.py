"""The deformable encoder: every token of every level looks at all levels."""

import torch
from torch import Tensor, nn

from common.layers import Linear, feed_forward
from ks_detection.models.dino.attention import DeformableAttention
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.parts.levels import Levels, cell_centres


class EncoderLayer(nn.Module):
    """Deformable self-attention and an FFN, each followed by its norm."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.self_attn = DeformableAttention(width, config.num_feature_levels, config.nheads, config.enc_n_points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = Linear(width, config.dim_feedforward)
        self.linear2 = Linear(config.dim_feedforward, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, levels: Levels) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x + positions, references, x, levels)))
        hidden = feed_forward(x, self.linear1, self.linear2, "relu", self.dropout.p if self.training else 0.0)
        return self.norm2(x + self.dropout(hidden))


class Encoder(nn.Module):
    """The layers in a row; no norm after the last."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.enc_layers))

    def forward(self, x: Tensor, positions: Tensor, levels: Levels) -> Tensor:
        """[B, S, D] memory of [B, S, D] tokens."""
        references = pixel_references(levels)
        if len(self.layers):
            references = self.layers[0].self_attn.spread(references)
        for layer in self.layers:
            x = layer(x, positions, references, levels)
        return x


def pixel_references(levels: Levels) -> Tensor:
    """[B, S, L, 2] the centre (x, y) of each token's cell, in parts of every padded level."""
    centres = []
    for level, (h, w) in enumerate(levels.sizes):
        grid = cell_centres(h, w, levels.ratios.device)
        size = levels.ratios[:, level] * torch.tensor([w, h], device=grid.device)  # [B, 2]
        centres.append(grid[None] / size[:, None])
    return torch.cat(centres, dim=1)[:, :, None] * levels.ratios[:, None]
