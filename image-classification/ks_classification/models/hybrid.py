"""A ViT on a frozen convolutional stem: MobileNetV2 up to stride 16, then Transformer blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.backbones.mobilenet import WIDTHS, mobilenet_blocks
from common.errors import UserError, first_line

STAGE = 2  # stride 16
CHANNELS = WIDTHS[STAGE]


class FrozenStem(nn.Module):
    """MobileNetV2's first 14 stages: images [B, 3, S, S] -> [B, 96, S/16, S/16], never trained.

    Stride-2 convolutions pad right and below only, as the network was trained in TensorFlow. Input that has
    96 channels already is a stem output from a cache and passes through.
    """

    num_features = CHANNELS  # read by timm's HybridEmbed

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_blocks(STAGE)
        self.strided = [m for m in self.features.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        for conv in self.strided:
            conv.padding = (0, 0)
            conv.register_forward_pre_hook(_pad_after)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenStem:
        return super().train(False)  # batch-norm statistics stay as they are

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == CHANNELS:
            return x
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):  # of an attacked picture
            return self.features(x)


def _pad_after(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (F.pad(inputs[0], (0, 1, 0, 1)),)


def build_hybrid(
    num_classes: int, img_size: int = 128, embed_dim: int = 192, depth: int = 6, num_heads: int = 3, **rest: float
) -> nn.Module:
    """A timm VisionTransformer of (img_size / 16)^2 + 1 tokens on the frozen stem.

    Raises:
        UserError: `img_size` is no multiple of 16.
    """
    from functools import partial

    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    if img_size % 16:
        raise UserError(f"`--img-size` of the hybrid must be a multiple of 16, got {img_size}.")
    side = img_size // 16
    embed = partial(HybridEmbed, backbone=FrozenStem(), feature_size=(side, side), feature_ratio=16, patch_size=1)
    return VisionTransformer(
        img_size=img_size, patch_size=1, num_classes=num_classes, embed_dim=embed_dim, depth=depth,
        num_heads=num_heads, embed_layer=embed, **rest,
    )  # fmt: skip


def load_stem(model: nn.Module, path: str) -> None:
    """Reads a torchvision mobilenet_v2 state dict into the stem of a hybrid.

    Raises:
        UserError: no such file, or not a MobileNetV2.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        wanted = model.patch_embed.backbone.features
        wanted.load_state_dict({k: own[k] for k in wanted.state_dict() if k in own}, strict=False)
        missing = [k for k in wanted.state_dict() if k not in own and "num_batches" not in k]
    except (OSError, RuntimeError, AttributeError) as error:
        raise UserError(f"--stem-weights {path}: {first_line(error)}") from None
    if missing:
        raise UserError(f"--stem-weights {path} is no torchvision mobilenet_v2 state dict ({missing[0]} is missing).")
