"""Two-stage query selection: the encoder's tokens as candidates, the best of which start the decoder."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.layers import Linear
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.parts.levels import Levels, cell_centres
from ks_detection.models.parts.mlp import MLP


class Selection(NamedTuple):
    """The chosen tokens. logits: [B, Q, C]; boxes: [B, Q, 4] cxcywh in 0..1, with gradients."""

    logits: Tensor
    boxes: Tensor


def token_proposals(levels: Levels) -> tuple[Tensor, Tensor]:
    """[B, S, 4] box logits, one per token, and [B, S] bool, False for tokens that propose nothing.

    A token proposes a square of side 0.05 * 2^level at its own place. Tokens on padding, and boxes not wholly
    between 0.01 and 0.99, get the logit infinity.
    """
    proposals, batch, start = [], levels.mask.shape[0], 0
    for level, (h, w) in enumerate(levels.sizes):
        mask = levels.mask[:, start : start + h * w].view(batch, h, w)
        valid_h, valid_w = (~mask[:, :, 0]).sum(1), (~mask[:, 0, :]).sum(1)
        centre = (
            cell_centres(h, w, mask.device)[None] / torch.stack([valid_w, valid_h], dim=-1)[:, None]
        )  # [B, h * w, 2]
        proposals.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2.0**level)], dim=-1))
        start += h * w
    boxes = torch.cat(proposals, dim=1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~levels.mask
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~valid[..., None], math.inf)
    return logits, valid


class QuerySelection(nn.Module):
    """Scores all tokens, keeps the best `num_queries`, and gives each of these a box.

    The published model computes boxes for all tokens; here only for the chosen, and gradients flow through
    those alone, which is the same function and the same gradient.
    """

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.num_queries = config.num_queries
        self.enc_output = Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.enc_out_class_embed = Linear(width, config.num_classes)
        self.enc_out_bbox_embed = MLP(width, width, 4, 3)

    def forward(self, memory: Tensor, levels: Levels) -> Selection:
        proposals, valid = token_proposals(levels)
        memory = memory * valid[..., None]
        with torch.no_grad():
            best = self.enc_out_class_embed(self._features(memory)).max(-1).values  # [B, S]
            picks = best.float().topk(min(self.num_queries, best.shape[1]), dim=1).indices[..., None]
        chosen = self._features(memory.gather(1, picks.expand(-1, -1, memory.shape[-1])))
        start = proposals.gather(1, picks.expand(-1, -1, 4))
        boxes = (self.enc_out_bbox_embed(chosen).float() + start).sigmoid()
        return Selection(self.enc_out_class_embed(chosen), boxes)

    def _features(self, memory: Tensor) -> Tensor:
        return self.enc_output_norm(self.enc_output(memory))
