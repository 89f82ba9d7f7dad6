"""The Deformable DETR detector: images in, class logits and boxes of every decoder layer out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ks_detection.checkpoints import deformable_detr
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.deformable_detr.criterion import DeformableCriterion
from ks_detection.models.deformable_detr.network import build_parts
from ks_detection.models.parts.boxes import inverse_sigmoid
from ks_detection.models.parts.detector import PRIOR_BIAS, Detector
from ks_detection.models.parts.levels import Levels, Tokens, lay_out, project_levels
from ks_detection.models.parts.mlp import MLP

EPS = 1e-5  # of the inverse sigmoid; DINO's is 1e-3


def of_levels(levels: Levels) -> dict:
    """What every attention layer of transformers wants to know about the levels."""
    return {"spatial_shapes": levels.shapes, "spatial_shapes_list": levels.sizes, "level_start_index": levels.starts}


class Start(NamedTuple):
    """What the decoder begins with: content and positions [B, Q, D], references [B, Q, 2 or 4] in 0..1.

    proposals: the encoder's own outputs for all tokens, in a two-stage model; they know objects, but no classes.
    """

    content: Tensor
    positions: Tensor
    references: Tensor
    proposals: dict | None = None


class DeformableDetr(Detector):
    """Deformable DETR with any of our backbones; encoder and decoder layers are transformers'.

    Source: Zhu et al., 2021, arXiv:2010.04159.
    Iterative refinement and two stages are switches of the config. Answers are those of transformers'
    DeformableDetrForObjectDetection; what differs is the operator inside, the backbone's folded norms and, in
    training, that the encoder's input is not dropped out (as published).
    """

    config_type, layout, fixed_rows = DeformableConfig, deformable_detr, True
    targets_only_train = True

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__(config)
        width, layers = config.hidden_dim, config.dec_layers
        self.backbone, self.network = build_parts(config)
        heads = layers + config.two_stage if config.with_box_refine else 1  # one head serves all layers otherwise
        self.class_embed = nn.ModuleList(nn.Linear(width, config.num_classes) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(MLP(width, width, 4, 3) for _ in range(heads))
        self.reset_heads()

    def reset_heads(self) -> None:
        """The prior for class biases; boxes start at their references, a tenth of the image large."""
        for head in self.class_embed:
            nn.init.constant_(head.bias, PRIOR_BIAS)
        for mlp in self.bbox_embed:
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)
        if not self.config.two_stage:
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)

    def criterion(self) -> DeformableCriterion:
        return DeformableCriterion(self.config)

    def class_parameters(self) -> list[str]:
        """Without the head of the proposals, which knows no classes, and those of layers without a loss."""
        last = self.config.dec_layers - 1
        used = range(0 if self.config.aux_loss else last, last + 1) if len(self.class_embed) > 1 else [0]
        return [f"class_embed.{i}.{part}" for i in used for part in ("weight", "bias")]

    def decode(self, maps: list[Tensor], mask: Tensor, targets: list[dict] | None = None) -> dict:
        """The outputs from backbone maps and the pixel mask [B, H, W], True on padding.

        Args:
            targets: not looked at; there is no denoising.

        Returns:
            `pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4] cxcywh in 0..1, `queries` [B, Q, D] (what the class head
            reads), `aux_outputs` list of {pred_logits, pred_boxes} (empty with `aux_loss` off), and for a two-stage
            model `enc_outputs` the same of all tokens, in whose logits only row 0, "an object", means anything.
        """
        tokens = self.tokens(maps, mask)
        memory = self.encode(tokens)
        start = self.propose(memory, tokens) if self.config.two_stage else self.learned_start(len(memory))
        x, references, layers = start.content, start.references, []
        ratios = tokens.levels.ratios[:, None]  # [B, 1, L, 2]
        for number, layer in enumerate(self.network.decoder.layers):
            scale = ratios if references.shape[-1] == 2 else torch.cat([ratios, ratios], -1)
            x = layer(
                x, start.positions, references[:, :, None] * scale, **of_levels(tokens.levels),
                encoder_hidden_states=memory, encoder_attention_mask=~tokens.levels.mask,
            )  # fmt: skip
            boxes = self.boxes(number, x, references)
            layers.append((x, boxes))
            if self.config.with_box_refine:
                references = boxes.detach()
        return self.outputs(layers, start)

    def tokens(self, maps: list[Tensor], mask: Tensor) -> Tokens:
        """Projected levels with their position encodings."""
        network = self.network
        maps = project_levels(network.input_proj, maps)
        content, masks, levels = lay_out(maps, mask)
        places = [
            network.position_embedding(level.shape, level.device, torch.float32, ~m)
            for level, m in zip(maps, masks, strict=True)
        ]
        positions = [p.flatten(2).transpose(1, 2) + network.level_embed[i] for i, p in enumerate(places)]
        return Tokens(content, torch.cat(positions, 1), levels)

    def encode(self, tokens: Tokens) -> Tensor:
        """[B, S, D] memory."""
        encoder, x = self.network.encoder, tokens.content
        references = encoder.get_reference_points(tokens.levels.sizes, tokens.levels.ratios, device=x.device)
        for layer in encoder.layers:
            x = layer(
                x, ~tokens.levels.mask, spatial_position_embeddings=tokens.positions, reference_points=references, **of_levels(tokens.levels)
            )  # fmt: skip
        return x

    def learned_start(self, batch: int) -> Start:
        """Learned queries, each with a learned place."""
        positions, content = self.network.query_position_embeddings.weight.chunk(2, -1)
        references = self.network.reference_points(positions).float().sigmoid()
        return Start(*(t.expand(batch, -1, -1) for t in (content, positions, references)))

    def propose(self, memory: Tensor, tokens: Tokens) -> Start:
        """The best tokens as starts, and all of them as proposals (arXiv:2010.04159, appendix A.4)."""
        network = self.network
        features, places = network.gen_encoder_output_proposals(memory, tokens.levels.mask, tokens.levels.sizes)
        logits = self.class_embed[-1](features)
        boxes = self.bbox_embed[-1](features).float() + places
        count = min(self.config.num_queries, logits.shape[1])
        best = logits[..., 0].topk(count, dim=1).indices[..., None].expand(-1, -1, 4)
        chosen = boxes.gather(1, best).detach()
        mixed = network.pos_trans_norm(network.pos_trans(network.get_proposal_pos_embed(chosen)))
        positions, content = mixed.chunk(2, -1)
        return Start(content, positions, chosen.sigmoid(), {"pred_logits": logits, "pred_boxes": boxes.sigmoid()})

    def boxes(self, layer: int, x: Tensor, references: Tensor) -> Tensor:
        """[B, Q, 4] cxcywh in 0..1: what the layer's head adds to the references' logits."""
        head = self.bbox_embed[layer if self.config.with_box_refine else 0]
        start = inverse_sigmoid(references.float(), EPS)
        return (head(x).float() + F.pad(start, (0, 4 - start.shape[-1]))).sigmoid()

    def outputs(self, layers: list[tuple[Tensor, Tensor]], start: Start) -> dict:
        """Class heads on every layer that is asked for."""
        wanted = layers if self.config.aux_loss else layers[-1:]
        first = len(layers) - len(wanted)
        found = [
            {"pred_logits": self.class_embed[number if self.config.with_box_refine else 0](x), "pred_boxes": boxes}
            for number, (x, boxes) in enumerate(wanted, first)
        ]
        result = {**found[-1], "queries": layers[-1][0], "aux_outputs": found[:-1]}
        return result if start.proposals is None else result | {"enc_outputs": start.proposals}


DETECTOR = DeformableDetr
