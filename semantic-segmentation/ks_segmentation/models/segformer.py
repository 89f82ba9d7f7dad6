"""SegFormer of transformers. Source: Xie et al., 2021, arXiv:2105.15203."""

from __future__ import annotations

from torch import Tensor

from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.pixels import Maps, PixelSegmenter
from ks_segmentation.models.parts.watch import watched


class Segformer(FromHub, PixelSegmenter):
    """Class logits at a quarter of the image's size."""

    network_class = "SegformerForSemanticSegmentation"
    class_layers = ("network.decode_head.classifier",)

    def maps(self, images: Tensor) -> Maps:
        with watched(self.network.decode_head.classifier) as (classes,):
            self.network(images)
        return Maps(classes.calls[0].output, classes.calls[0].input)

    def graph_side(self) -> int:
        return 0


SEGMENTER = Segformer
