"""Backbones for small work: a tiny convolutional net, any timm feature model."""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError

STRIDES = (4, 8, 16, 32)


class TinyBlock(nn.Module):
    """A strided convolution and a residual pair; group norms, so that a batch may be split over processes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.down(x)))
        return F.relu(x + self.norm2(self.conv(x)))


class Tiny(nn.Module):
    """0.9 M parameters: a stem and one block per stride 4, 8, 16, 32."""

    WIDTH = (32, 64, 128, 160)

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.channels = [self.WIDTH[stage] for stage in stages]
        self.stem = TinyBlock(3, 16, 2)
        inputs, blocks = 16, []
        for width in self.WIDTH[: max(stages) + 1]:
            blocks.append(TinyBlock(inputs, width, 2))
            inputs = width
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            if stage in self.stages:
                maps.append(x)
        return maps


class TimmFeatures(nn.Module):
    """Any timm model that gives feature maps; batch norms are frozen."""

    def __init__(self, name: str, stages: tuple[int, ...]) -> None:
        super().__init__()
        import timm
        from timm.utils.model import freeze_batch_norm_2d

        if not re.fullmatch(r"[\w.-]+", name):  # a scheme such as hf-hub: or local-dir: would be followed
            raise UserError(f"`backbone` timm:{name}: only names that timm knows by itself are built.")
        try:
            body = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise UserError(f"`backbone` timm:{name}: timm cannot build feature maps ({error}).") from None
        levels = {info["reduction"]: i for i, info in enumerate(body.feature_info.get_dicts())}
        wanted = [STRIDES[stage] for stage in stages]
        if not set(wanted) <= set(levels):
            raise UserError(f"`backbone` timm:{name}: has strides {sorted(levels)}, needs {wanted}.")
        self.indices = [levels[stride] for stride in wanted]
        self.channels = [body.feature_info.get_dicts()[i]["num_chs"] for i in self.indices]
        self.body = freeze_batch_norm_2d(body)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return [maps[i] for i in self.indices]
