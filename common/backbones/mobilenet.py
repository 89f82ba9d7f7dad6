"""torchvision's MobileNetV2 as a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

WIDTHS = (24, 32, 96, 320)  # channels at strides 4, 8, 16 and 32
LAST = (3, 6, 13, 17)  # the last block of each stride in torchvision's list


def mobilenet_blocks(stage: int, norm_layer: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """The blocks up to stride 4 * 2^stage, with random weights."""
    from torchvision.models import mobilenet_v2  # here, because it takes seconds to import

    return mobilenet_v2(weights=None, norm_layer=norm_layer).features[: LAST[stage] + 1]


class MobileNet(nn.Module):
    """Images [B, 3, H, W] -> maps of `stages` (0 is stride 4, 3 is stride 32), finest first; batch norms are frozen."""

    def __init__(self, stages: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        from torchvision.ops import FrozenBatchNorm2d

        self.ends = [LAST[stage] for stage in stages]
        self.channels = [WIDTHS[stage] for stage in stages]
        self.features = mobilenet_blocks(max(stages), FrozenBatchNorm2d)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return maps
