"""MaskFormer of transformers. Source: Cheng et al., 2021, arXiv:2107.06278."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ks_segmentation.models.parts.criterion import LEAST, Criterion, products
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.queries import Queries, QuerySegmenter

ALPHA = 0.25  # weight of pixels inside; the square is focal loss's gamma of 2


class FocalCriterion(Criterion):
    """Masks are compared by the focal loss, at points. Source: Lin et al., 2017, arXiv:1708.02002, equation 5."""

    def mask_cost(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        outside = x.sigmoid_().clamp_(min=LEAST)
        inside = (1 - outside).clamp(min=LEAST)
        cost = -ALPHA * products(outside**2 * inside.log(), t)
        cost -= (1 - ALPHA) * products(inside**2 * outside.log(), 1 - t)
        return cost / self.points, outside

    def point_loss(self, x: Tensor, t: Tensor) -> Tensor:
        miss = x.sigmoid() * (1 - 2 * t) + t  # 1 - p inside, p outside
        weight = ALPHA * t + (1 - ALPHA) * (1 - t)
        return weight * miss**2 * F.binary_cross_entropy_with_logits(x, t, reduction="none")


class MaskFormer(FromHub, QuerySegmenter):
    """One output per decoder layer where its config has auxiliary losses, else the last alone."""

    network_class = "MaskFormerForInstanceSegmentation"
    class_layers = ("network.class_predictor",)
    unadapted = ("mask_embedder", "decoder.layers.0.self_attn.v_proj")  # the latter sees zeros alone

    def queries(self, images: Tensor) -> Queries:
        network = self.network
        deep = bool(network.config.use_auxiliary_loss)
        found = network.model(images, output_hidden_states=deep, return_dict=True)
        states = [found.transformer_decoder_last_hidden_state]
        if deep:
            states = list(found.transformer_decoder_hidden_states)
        every = torch.stack(states)
        features = found.pixel_decoder_last_hidden_state
        return Queries(every, network.class_predictor(every), network.mask_embedder(every), features)

    def criterion(self) -> Criterion:
        return FocalCriterion(self.config)


SEGMENTER = MaskFormer
