"""The backbone that a config names. Each has `channels` and returns its feature maps, finest first."""

from torch import nn

from common.backbones.mobilenet import MobileNet
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.resnet import DEPTHS, ResNet
from ks_detection.dino.small_backbones import TimmFeatures, Tiny
from ks_detection.dino.swin import SIZES, Swin


def build_backbone(config: DinoConfig) -> nn.Module:
    """A module with `channels`, of the stages in `config.return_interm_indices` (0 is stride 4, 3 is 32)."""
    name, stages = config.backbone, config.return_interm_indices
    if name in DEPTHS:
        return ResNet(name, stages)
    if name in SIZES:
        return Swin(name, stages, config.drop_path_rate, config.use_checkpoint)
    if name.startswith("timm:"):
        return TimmFeatures(name.removeprefix("timm:"), stages)
    return {"mobilenet_v2": MobileNet, "tiny": Tiny}[name](stages)
