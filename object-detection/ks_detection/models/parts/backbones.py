"""The backbone that a config names. Each has `channels` and returns its feature maps, finest first."""

from typing import Any

from torch import nn

from common.backbones.mobilenet import MobileNet
from ks_detection.models.parts.resnet import DEPTHS, ResNet
from ks_detection.models.parts.small_backbones import TimmFeatures, Tiny
from ks_detection.models.parts.swin import SIZES, Swin

BACKBONES = (*DEPTHS, *SIZES, "mobilenet_v2", "tiny")


def build_backbone(config: Any) -> nn.Module:
    """A module with `channels`, of the stages in `config.return_interm_indices` (0 is stride 4, 3 is 32)."""
    name, stages = config.backbone, config.return_interm_indices
    if name in DEPTHS:
        return ResNet(name, stages)
    if name in SIZES:
        return Swin(name, stages, config.drop_path_rate, config.use_checkpoint)
    if name.startswith("timm:"):
        return TimmFeatures(name.removeprefix("timm:"), stages)
    return {"mobilenet_v2": MobileNet, "tiny": Tiny}[name](stages)
