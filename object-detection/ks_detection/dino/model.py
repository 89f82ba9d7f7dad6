"""The DINO detector: images in, class logits and boxes of every decoder layer out."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ks_detection.boxes import inverse_sigmoid
from ks_detection.detector import PRIOR_BIAS, Detector, ffn_linears
from ks_detection.dino.backbones import build_backbone
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.config_file import read_config
from ks_detection.dino.decoder import Decoder
from ks_detection.dino.deformable import DeformableAttention, Levels
from ks_detection.dino.denoising import Denoising, blocked_pairs, make_denoising
from ks_detection.dino.encoder import Encoder
from ks_detection.dino.mlp import MLP
from ks_detection.dino.padding import resize_mask, valid_ratio
from ks_detection.dino.positions import pixel_positions
from ks_detection.dino.proposals import QuerySelection


class Tokens(NamedTuple):
    """All levels, flattened: content [B, S, D], positions [B, S, D], how they lie, which are padding."""

    content: Tensor
    positions: Tensor
    levels: Levels


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

    def class_parameters(self) -> list[str]:
        return [*super().class_parameters(), "label_enc.weight"]

    def extend_labels(self, old: int, added: int) -> None:
        """New rows of `label_enc` start like the model's own; its last row, one beyond the classes, stays last."""
        labels, width = self.label_enc.weight, self.label_enc.embedding_dim
        fresh = labels.new_empty(added, width).normal_()
        extended = nn.Embedding(labels.shape[0] + added, width, device=labels.device, dtype=labels.dtype)
        extended.weight.copy_(torch.cat([labels[:old], fresh, labels[old:]]))
        extended.weight.requires_grad_(labels.requires_grad)
        self.label_enc = extended
        self.config.dn_labelbook_size += added

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
        blocked = None
        if denoising is not None:
            extra, extra_boxes = self.noised_queries(denoising)
            blocked = blocked_pairs(denoising, boxes.shape[1])
            content, boxes = torch.cat([extra, content], dim=1), torch.cat([extra_boxes, boxes], dim=1)
        queries, starts = transformer.decoder(content, boxes, memory, tokens.levels, blocked, self.bbox_embed)
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
        projected = project_levels(self.input_proj, maps)
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in projected)
        masks = [resize_mask(mask, h, w) for h, w in sizes]
        config, embed = self.config, self.transformer.level_embed
        temperatures = (config.pe_temperatureH, config.pe_temperatureW)
        positions = [pixel_positions(m, config.hidden_dim // 2, *temperatures) + embed[i] for i, m in enumerate(masks)]
        shapes = torch.tensor(sizes, dtype=torch.long, device=mask.device)
        tokens_per_level = shapes.prod(1)
        starts = tokens_per_level.cumsum(0) - tokens_per_level
        ratios = torch.stack([valid_ratio(m) for m in masks], dim=1)
        levels = Levels(sizes, shapes, starts, ratios, torch.cat([m.flatten(1) for m in masks], dim=1))
        content = torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)
        return Tokens(content, torch.cat(positions, dim=1), levels)


def input_projections(channels: list[int], config: DinoConfig, groups: int = 0) -> nn.ModuleList:
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


def _layers(logits: Tensor, boxes: Tensor) -> list[dict]:
    return [{"pred_logits": l, "pred_boxes": b} for l, b in zip(logits, boxes, strict=True)]


def build_dino(config: DinoConfig | dict | str | Path) -> Dino:
    """A DINO with fresh weights; with `lora_rank` above 0 adapters sit on every FFN linear, base frozen.

    Args:
        config: a `DinoConfig`, a published config file, or the dictionary that `read_config` makes of one.
    """
    if isinstance(config, (str, Path)):
        config = read_config(config)
    config = config if isinstance(config, DinoConfig) else DinoConfig.from_dict(dict(config))
    return adapted(Dino(config))


def adapted(model: nn.Module) -> nn.Module:
    """The detector with adapters on every FFN linear where its config asks for them."""
    if model.config.lora_rank:
        from common.lora import inject

        inject(model, ffn_linears(model), model.config.lora_rank, model.config.lora_alpha)
    return model
