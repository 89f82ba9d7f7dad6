"""EoMT of transformers: a plain ViT whose last blocks hold the queries. Source: Kerssies et al., 2025, arXiv:2503.19108."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.queries import Queries, QuerySegmenter
from ks_segmentation.models.parts.watch import watched


class Eomt(FromHub, QuerySegmenter):
    """It sees squares of one size: answers are made in windows, with padding; any other image is squeezed."""

    network_class = "EomtForUniversalSegmentation"
    class_layers = ("network.class_predictor",)
    unadapted = ("mask_head",)

    @classmethod
    def own_settings(cls, config: Any) -> list[Any]:
        side = config.image_size
        return ["MODEL.MASK_FORMER.SIZE_DIVISIBILITY", side, "TEST.SLIDING_WINDOW", side, "INPUT.CROP.SIZE", [side, side],
                "INPUT.MIN_SIZE_TEST", side]  # fmt: skip

    def graph_side(self) -> int:
        return self.network.config.image_size

    def settle(self) -> None:
        """Which blocks mask their attention is asked of a buffer, which a tracer cannot; numbers in its place can be."""
        self.network.__dict__["attn_mask_probs"] = self.network._buffers["attn_mask_probs"].tolist()

    def queries(self, images: Tensor) -> Queries:
        """One output in front of each block with masked attention, and the last."""
        network, side = self.network, self.network.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        with watched(network.class_predictor, network.mask_head, network.upscale_block) as (classes, masks, maps):
            network(images)
        return Queries(classes.inputs(), classes.outputs(), masks.outputs(), maps.outputs())


SEGMENTER = Eomt
