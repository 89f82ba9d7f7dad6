"""What every detector here has, and how it gets more classes."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import ClassTable
from common.errors import UserError
from ks_detection.models.parts.padding import Padded, pad_images
from ks_detection.models.parts.postprocess import Detections, post_process

PRIOR_BIAS = -math.log(99)  # every class starts at probability 0.01
HEAD = re.compile(r"(^|\.)(enc_out_)?class_embed(\.\d+)?$")
FFN = (".mlp.fc1", ".mlp.fc2", ".linear1", ".linear2")  # of backbones and Deformable DETR, and of DINO


class Detector(nn.Module):
    """A detector with a `backbone`; images are normalised by the caller (ImageNet statistics).

    config: what it was built from; class_table: names of its logit rows, or None.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.class_table: ClassTable | None = None

    def forward(self, images: list[Tensor] | Padded, targets: list[dict] | None = None) -> dict:
        """Outputs of the last decoder layer and of those before; see `decode` of the detector.

        Args:
            images: list of normalised [3, H, W], or a batch already padded.
            targets: per image {"labels": [T], "boxes": [T, 4] cxcywh in 0..1}; only read in training mode.
        """
        padded = images if isinstance(images, Padded) else pad_images(images)
        return self.decode(self.backbone(padded.pixels), padded.mask, targets)

    def decode(self, maps: list[Tensor], mask: Tensor, targets: list[dict] | None = None) -> dict:
        """The outputs from backbone maps and the pixel mask [B, H, W], True on padding."""
        raise NotImplementedError

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class that a class's loss reaches."""
        return [f"{head}.{part}" for head in class_heads(self) for part in ("weight", "bias")]

    def extend_labels(self, old: int, added: int) -> None:
        """Adds rows to what else knows classes besides the heads."""

    @torch.no_grad()
    def detect(self, images: list[Tensor], score_threshold: float = 0.3) -> list[Detections]:
        """Per image {scores [N], labels [N], boxes [N, 4] xyxy in its pixels}, best first, in eval mode.

        Raises:
            UserError: if `score_threshold` is not in 0..1.
        """
        if not 0 <= score_threshold <= 1:
            raise UserError(f"`score_threshold` must be in 0..1, got {score_threshold}.")
        was_training = self.training
        self.eval()
        outputs = self(images)
        self.train(was_training)
        sizes = [tuple(image.shape[-2:]) for image in images]
        return post_process(outputs, sizes, self.config.num_select, score_threshold)


def ffn_linears(model: nn.Module) -> list[str]:
    """Names of all FFN linears, backbone included."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(FFN)]


def class_heads(model: nn.Module) -> list[str]:
    """Names of the linear layers with a row per class."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and HEAD.search(name)]


@torch.no_grad()
def extend_classes(model: Detector, num_classes: int) -> Detector:
    """The same model with `num_classes` logit rows, changed in place; old rows keep their values.

    New rows start small at the prior of 0.01.

    Raises:
        UserError: if the model has more classes already.
    """
    old, added = model.config.num_classes, num_classes - model.config.num_classes
    if added < 0:
        raise UserError(f"the model has {old} classes already; it cannot be cut to {num_classes}.")
    if added:
        for name in sorted(class_heads(model)):  # the order in which random numbers are drawn
            parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            setattr(parent, leaf, _longer_head(getattr(parent, leaf), added))
        model.config.num_classes = num_classes
        model.extend_labels(old, added)
    return model


def _longer_head(head: nn.Linear, added: int) -> nn.Linear:
    new = nn.Linear(head.in_features, head.out_features + added, device=head.weight.device, dtype=head.weight.dtype)
    new.weight[: head.out_features] = head.weight
    new.bias[: head.out_features] = head.bias
    new.bias[head.out_features :] = PRIOR_BIAS
    new.requires_grad_(head.weight.requires_grad)
    return new
