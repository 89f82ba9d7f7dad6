"""A MobileNetV2 as backbone: four maps at strides 4 to 32, norms frozen."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn

WIDTHS = (24, 32, 96, 320)  # channels at strides 4, 8, 16 and 32
ENDS = (3, 6, 13, 17)  # last block of each stride in torchvision's list


class MobileNetFeatures(nn.Module):
    """torchvision's mobilenet_v2 up to its last block; batch norms use fixed statistics.

    Args of forward: images [B, 3, H, W]. Returns an object with `feature_maps`, as transformers' backbones do.
    """

    channels = list(WIDTHS)

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2
        from torchvision.ops import FrozenBatchNorm2d

        blocks = list(mobilenet_v2(norm_layer=FrozenBatchNorm2d).features)[: ENDS[-1] + 1]
        self.features = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> SimpleNamespace:
        maps, x = [], images
        for i, block in enumerate(self.features):
            x = block(x)
            if i in ENDS:
                maps.append(x)
        return SimpleNamespace(feature_maps=tuple(maps))
