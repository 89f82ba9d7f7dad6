"""The decoder: queries refine their boxes layer by layer, and look forward twice."""

import torch
from torch import Tensor, nn

from common.layers import Linear, feed_forward, packed_attention
from ks_detection.models.dino.attention import DeformableAttention
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.positions import box_positions
from ks_detection.models.parts.boxes import inverse_sigmoid
from ks_detection.models.parts.levels import Levels
from ks_detection.models.parts.mlp import MLP


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, FFN; the published names number the norms 2, 1, 3."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.cross_attn = DeformableAttention(width, config.num_feature_levels, config.nheads, config.dec_n_points)
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, config.nheads, config.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = Linear(width, config.dim_feedforward)
        self.linear2 = Linear(config.dim_feedforward, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        boxes: Tensor,
        memory: Tensor,
        levels: Levels,
        blocked: Tensor | None,
        apart: int = 0,
    ) -> Tensor:
        """[B, Q, D] of [B, Q, D] queries; boxes [B, Q, L, 4]; blocked [Q, Q] bool or None.

        apart: of the queries, the first, which are blocked for all others, while these may see each other.
        """
        query = x + positions
        if type(self.self_attn) is nn.MultiheadAttention:
            mixed = packed_attention(self.self_attn, query, query, x, None if blocked is None else ~blocked, apart)
        else:  # adapted: it knows how to run itself
            mixed = self.self_attn(query, query, x, attn_mask=blocked, need_weights=False)[0]
        x = self.norm2(x + self.dropout(mixed))
        x = self.norm1(x + self.dropout(self.cross_attn(x + positions, boxes, memory, levels)))
        hidden = feed_forward(x, self.linear1, self.linear2, "relu", self.dropout.p if self.training else 0.0)
        return self.norm3(x + self.dropout(hidden))


class Decoder(nn.Module):
    """The layers, the box refinement between them and the norm before the heads."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.features = width // 2  # sine features per box coordinate
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.dec_layers))
        self.norm = nn.LayerNorm(width)
        self.ref_point_head = MLP(2 * width, width, width, 2)

    def forward(
        self,
        x: Tensor,
        boxes: Tensor,
        memory: Tensor,
        levels: Levels,
        blocked: Tensor | None,
        bbox_embed: MLP,
        apart: int = 0,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer: [B, Q, D] normed queries, and [B, Q, 4] the boxes that the layer started from.

        The first layer's boxes carry no gradient. Every later layer refines detached boxes, but those
        returned are not detached: a layer's loss also reaches the layer before it ("look forward twice",
        section 3.5).
        The refinement reads the queries before the norm, the heads read them after it.
        """
        ratios = torch.cat([levels.ratios, levels.ratios], dim=-1)[:, None]  # [B, 1, L, 4]
        queries, starts, start = [], [boxes], boxes
        for layer in self.layers:
            per_level = start[:, :, None] * ratios
            positions = self.ref_point_head(box_positions(per_level[:, :, 0], self.features))
            x = layer(x, positions, per_level, memory, levels, blocked, apart)
            queries.append(self.norm(x))
            if layer is not self.layers[-1]:  # what the last layer would refine is read by nobody
                refined = (bbox_embed(x).float() + inverse_sigmoid(start)).sigmoid()
                starts.append(refined)
                start = refined.detach()
        return queries, starts
