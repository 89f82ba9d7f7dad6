"""UPerNet of transformers on any of its backbones. Source: Xiao et al., 2018, arXiv:1807.10221."""

from __future__ import annotations

from torch import Tensor, nn

from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.pixels import Maps, PixelSegmenter
from ks_segmentation.models.parts.watch import watched

HEADS = ("network.decode_head.classifier", "network.auxiliary_head.classifier")


class UperNet(FromHub, PixelSegmenter):
    """Class logits at a quarter of the image's size; the second head trains where its config has one."""

    network_class = "UperNetForSemanticSegmentation"

    def __init__(self, config: Config, network: nn.Module, files: dict[str, bytes]) -> None:
        super().__init__(config, network, files)
        self.class_layers = HEADS if network.auxiliary_head is not None else HEADS[:1]
        self.auxiliary_weight = network.config.auxiliary_loss_weight

    def maps(self, images: Tensor) -> Maps:
        heads = [self.get_submodule(name) for name in self.class_layers]
        with watched(*heads) as calls:
            self.network(images)
        (features, logits), *second = [kept.calls[0] for kept in calls]
        return Maps(logits, features, second[0].output if second else None)


SEGMENTER = UperNet
