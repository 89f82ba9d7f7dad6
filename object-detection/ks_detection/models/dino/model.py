"""The DINO detector: images in, class logits and boxes of every decoder layer out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ks_detection.checkpoints import dino
from ks_detection.models.dino.attention import DeformableAttention
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.criterion import Criterion
from ks_detection.models.dino.decoder import Decoder
from ks_detection.models.dino.denoising import Denoising, blocked_pairs, make_denoising
from ks_detection.models.dino.encoder import Encoder
from ks_detection.models.dino.positions import pixel_positions
from ks_detection.models.dino.proposals import QuerySelection
from ks_detection.models.parts.backbones import build_backbone
from ks_detection.models.parts.boxes import inverse_sigmoid
from ks_detection.models.parts.detector import PRIOR_BIAS, Detector
from ks_detection.models.parts.levels import Tokens, input_projections, lay_out, project_levels
from ks_detection.models.parts.mlp import MLP


class Transformer(nn.Module):
    """Encoder, query selection and decoder under one name, as the published checkpoints have them."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.level_embed = nn.Parameter(torch.randn(config.num_feature_levels, width))
        self.tgt_embed = nn.Embedding(config.num_queries, width)
        self.encoder = Encoder(config)
        self.selection = QuerySelection(config)
        self.decoder = Decoder(config)


class Dino(Detector):
    """DINO with contrastive denoising, mixed query selection and look-forward-twice.

    Source: Zhang et al., 2022, arXiv:2203.03605.
    """

    config_type, layout, fixed_rows = DinoConfig, dino, True
    targets_only_train = True

    def __init__(self, config: DinoConfig) -> None:
        super().__init__(config)
        width = config.hidden_dim
        self.backbone = build_backbone(config)
        self.input_proj = input_projections(self.backbone.channels, config)
        self.transformer = Transformer(config)
        self.class_embed = nn.Linear(width, config.num_classes)  # shared by all decoder layers
        self.bbox_embed = MLP(width, width, 4, 3)
        self.label_enc = nn.Embedding(config.dn_labelbook_size + 1, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the transformer, the prior for class biases, zero for the last box layers."""
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.transformer.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.transformer.level_embed)
        nn.init.normal_(self.transformer.tgt_embed.weight)
        for head in (self.class_embed, self.transformer.selection.enc_out_class_embed):
            nn.init.constant_(head.bias, PRIOR_BIAS)
        for mlp in (self.bbox_embed, self.transformer.selection.enc_out_bbox_embed):
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)

    def criterion(self) -> Criterion:
        return Criterion(self.config)

    def label_embeddings(self) -> list[str]:
        return ["label_enc"]

    def set_rows(self, kept: Sequence[int], added: int = 0) -> None:
        spare = self.config.dn_labelbook_size - self.config.num_classes
        super().set_rows(kept, added)
        self.config.dn_labelbook_size = self.config.num_classes + spare

    def decode(self, maps: list[Tensor], mask: Tensor, targets: list[dict] | None = None) -> dict:
        """The outputs from backbone maps and the pixel mask [B, H, W].

        Args:
            targets: in training mode they add `dn_outputs` (per layer) and `denoising`.

        Returns:
            `pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4] cxcywh in 0..1, `queries` [B, Q, D] (what the
            class head reads), `aux_outputs` list of {pred_logits, pred_boxes}, `interm_outputs` the same of
            the encoder's picks.
        """
        transformer = self.transformer
        tokens = self.tokens(maps, mask)
        memory = transformer.encoder(tokens.content, tokens.positions, tokens.levels)
        selected = transformer.selection(memory, tokens.levels)
        boxes = selected.boxes.detach()
        content = transformer.tgt_embed.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1)
        denoising = make_denoising(self.config, targets) if self.training and targets is not None else None
        blocked, apart = None, 0
        if denoising is not None:
            extra, extra_boxes = self.noised_queries(denoising)
            blocked, apart = blocked_pairs(denoising, boxes.shape[1]), extra.shape[1]
            content, boxes = torch.cat([extra, content], dim=1), torch.cat([extra_boxes, boxes], dim=1)
        queries, starts = transformer.decoder(content, boxes, memory, tokens.levels, blocked, self.bbox_embed, apart)
        if self.training and denoising is None and self.label_enc.weight.requires_grad:
            queries[0] = queries[0] + self.label_enc.weight[0, 0] * 0.0  # DDP wants every parameter used
        return self.outputs(queries, starts, selected, denoising)

    def outputs(self, queries: list[Tensor], starts: list[Tensor], selected, denoising: Denoising | None) -> dict:
        """Heads on every layer; denoising queries split off."""
        hidden = torch.stack(queries)  # [layers, B, P + Q, D]
        logits = self.class_embed(hidden)
        boxes = (self.bbox_embed(hidden).float() + inverse_sigmoid(torch.stack(starts))).sigmoid()
        extra = 0 if denoising is None else denoising.labels.shape[1]
        layers = _layers(logits[:, :, extra:], boxes[:, :, extra:])
        result = {
            **layers[-1],
            "queries": queries[-1][:, extra:],
            "aux_outputs": layers[:-1],
            "interm_outputs": {"pred_logits": selected.logits, "pred_boxes": selected.boxes},
        }
        if denoising is not None:
            result["dn_outputs"] = _layers(logits[:, :, :extra], boxes[:, :, :extra])
            result["denoising"] = denoising
        return result

    def noised_queries(self, denoising: Denoising) -> tuple[Tensor, Tensor]:
        """[B, P, D] label embeddings and [B, P, 4] boxes; empty slots are zeros at the centre."""
        used = denoising.used[..., None]
        content = self.label_enc(denoising.labels) * used
        start = torch.where(used, inverse_sigmoid(denoising.boxes), 0.0).sigmoid()
        return content, start

    def tokens(self, maps: list[Tensor], mask: Tensor) -> Tokens:
        """Projected levels with their position encodings; levels beyond the backbone's are strided convs."""
        content, masks, levels = lay_out(project_levels(self.input_proj, maps), mask)
        config, embed = self.config, self.transformer.level_embed
        temperatures = (config.pe_temperatureH, config.pe_temperatureW)
        positions = [pixel_positions(m, config.hidden_dim // 2, *temperatures) + embed[i] for i, m in enumerate(masks)]
        return Tokens(content, torch.cat(positions, dim=1), levels)


def _layers(logits: Tensor, boxes: Tensor) -> list[dict]:
    return [{"pred_logits": l, "pred_boxes": b} for l, b in zip(logits, boxes, strict=True)]


DETECTOR = Dino
