"""ResNet-50/101 with frozen batch norms folded into the convolutions; torchvision's key names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.layers import conv_norm

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class FrozenNorm(nn.Module):
    """A batch norm that never changes: four buffers, folded into the convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """[C] factor and [C] offset that the norm amounts to (eps 1e-5)."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions with a residual."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = FrozenNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = FrozenNorm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        exact = not self.training  # answers are compared with those of the published models
        y = conv_norm(self.conv1, self.bn1, x, relu=True, exact=exact)
        y = conv_norm(self.conv2, self.bn2, y, relu=True, exact=exact)
        residual = x if self.downsample is None else conv_norm(*self.downsample, x, exact=exact)
        return conv_norm(self.conv3, self.bn3, y, residual, relu=True, exact=exact)


class ResNet(nn.Module):
    """Feature maps of the chosen stages (strides 4, 8, 16, 32); `conv1` and `layer1` do not train."""

    def __init__(self, name: str, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.channels = [256 * 2**stage for stage in stages]
        self.body = nn.Module()
        self.body.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.body.bn1 = FrozenNorm(64)
        inputs = 64
        for stage, depth in enumerate(DEPTHS[name]):
            width = 64 * 2**stage
            first = Bottleneck(inputs, width, 1 if stage == 0 else 2)
            rest = [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
            setattr(self.body, f"layer{stage + 1}", nn.Sequential(first, *rest))
            inputs = 4 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for part in (self.body.conv1, self.body.layer1):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = conv_norm(self.body.conv1, self.body.bn1, x, relu=True, exact=not self.training)
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(max(self.stages) + 1):
            x = getattr(self.body, f"layer{stage + 1}")(x)
            if stage in self.stages:
                maps.append(x)
        return maps
