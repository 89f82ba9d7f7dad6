"""The seam of detectors: what the domain asks of one, and what all of them share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.domain import ClassTable
from common.errors import UserError
from common.layers import channels_last
from common.rows import set_rows
from ks_detection.checkpoints import plain
from ks_detection.checkpoints.export import export_official
from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.criterion import SetCriterion
from ks_detection.models.parts.padding import Padded, pad_images
from ks_detection.models.parts.postprocess import Detections, post_process

PRIOR_BIAS = -math.log(99)  # every class starts at probability 0.01
HEAD = re.compile(r"(^|\.)(enc_out_)?class_embed(\.\d+)?$")
FFN = (".mlp.fc1", ".mlp.fc2", ".linear1", ".linear2")  # of backbones and Deformable DETR, and of DINO
ATTENTION = (".value_proj", ".output_proj", ".q_proj", ".k_proj", ".v_proj", ".o_proj")  # linears inside attention


class Detector(nn.Module):
    """A detector as the domain sees it; images are normalised by the caller (ImageNet statistics).

    A new one is a file in `models/` (or a folder with a `model.py`) that sets DETECTOR to its class; the file's name is
    the `modelname` of its config. It is built from its config and defines `forward`, or `backbone` and `decode`; the
    other methods have bodies that suit a detector with sigmoid heads called `class_embed`.

    config: what it was built from; class_table: names of its logit rows, or None.
    config_type: the dataclass of its constants.
    layout: how its files name tensors: a module with the functions of `checkpoints.plain`.
    fixed_rows: rows are numbered by the published data (COCO ids), so that none may be taken out of a file.
    smooth: images that are stretched to the size of a graph are smoothed where they shrink.
    targets_only_train: with targets there is more in its outputs, for the loss, and the rest of them stays.
    """

    config_type: ClassVar[type[DetectorConfig]]
    layout: ClassVar[Any] = plain
    fixed_rows: ClassVar[bool] = False
    smooth: ClassVar[bool] = True
    targets_only_train: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.class_table: ClassTable | None = None

    # ---- forward, loss and answers -----------------------------------------------------------------------

    def forward(self, images: list[Tensor] | Padded, targets: list[dict] | None = None) -> dict:
        """Outputs of the last decoder layer and of those before.

        Args:
            images: list of normalised [3, H, W], or a batch already padded.
            targets: per image {"labels": [T], "boxes": [T, 4] cxcywh in 0..1}, for denoising.

        Returns:
            `pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4] cxcywh in 0..1, `queries` [B, Q, D] (what the class head
            reads), `aux_outputs` list of {pred_logits, pred_boxes} of the layers before, and what the criterion wants.
        """
        padded = images if isinstance(images, Padded) else pad_images(images)
        return self.decode(self.maps(padded.pixels), padded.mask, targets)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Maps of the backbone for [B, 3, H, W], finest first."""
        return self.backbone(channels_last(pixels))

    def decode(self, maps: list[Tensor], mask: Tensor, targets: list[dict] | None = None) -> dict:
        """The outputs from backbone maps and the pixel mask [B, H, W], True on padding."""
        raise NotImplementedError

    def alike(self, images: Tensor) -> dict:
        """The outputs for images [B, 3, H, W] of one size, none of it padding: what an exported graph computes."""
        return self(Padded(images, torch.zeros_like(images[:, 0], dtype=torch.bool)))

    def graph_size(self, side: int) -> tuple[int, int] | None:
        """(height, width) that a graph of it is made for, near `side`; None where a graph takes any. A Swin's windows
        are cut for one size."""
        return (side, side) if str(self.config.backbone).startswith("swin") else None

    def criterion(self) -> SetCriterion:
        """The loss that it is trained with."""
        return SetCriterion(self.config)

    def post_process(self, outputs: dict, sizes: list[tuple[int, int]], threshold: float = 0.0) -> list[Detections]:
        """Per image of `sizes` (height, width) pixels the detections that count, best first."""
        return post_process(outputs, sizes, self.config.num_select, threshold)

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
        return self.post_process(outputs, [tuple(image.shape[-2:]) for image in images], score_threshold)

    # ---- classes and adapters ----------------------------------------------------------------------------

    def heads(self) -> list[str]:
        """Names of the linear layers with a row per class."""
        return class_heads(self)

    def label_embeddings(self) -> list[str]:
        """Names of the embeddings with a row per class; rows behind those of the classes mean something else."""
        return []

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class that a class's loss reaches."""
        heads = [f"{head}.{part}" for head in self.heads() for part in ("weight", "bias")]
        return heads + [f"{name}.weight" for name in self.label_embeddings()]

    @torch.no_grad()
    def set_rows(self, kept: Sequence[int], added: int = 0) -> None:
        """Keeps these rows of every head and label embedding, in this order, with `added` new ones behind them.

        New rows start small at the prior of 0.01; those of embeddings like the model's own.
        """
        old, done = self.config.num_classes, {}
        for name in [*sorted(self.heads()), *self.label_embeddings()]:  # the order in which random numbers are drawn
            parent, leaf = self.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            layer = getattr(parent, leaf)
            if id(layer.weight) not in done:  # a layer that stands in two places stays one
                done[id(layer.weight)] = layer
                set_rows(layer, kept, added, len(layer.weight) - old, _fresh(layer, len(kept), added))
                done[id(layer.weight)] = layer
                if getattr(layer, "padding_idx", None) is not None:
                    layer.padding_idx += len(kept) + added - old
            setattr(parent, leaf, done[id(layer.weight)])
        self.config.num_classes = len(kept) + added

    def adapter_targets(self) -> dict[str, list[str]]:
        """Position ("ffn", "attention") -> names of the linear layers that adapters go on."""
        attention = [n for n, m in self.named_modules() if isinstance(m, nn.MultiheadAttention)]
        attention += [n for n, m in self.named_modules() if n.endswith(ATTENTION) and isinstance(m, nn.Linear)]
        return {"ffn": ffn_linears(self), "attention": attention}

    # ---- files -------------------------------------------------------------------------------------------

    def export(self, path: Path, kind: str) -> Path:
        """Writes it with adapters merged, as "official" or "official-half"; the path.

        Raises:
            UserError: a format that is not its own.
        """
        if not kind.startswith("official"):
            raise UserError(f"a {self.config.modelname} is not written as {kind}; give --format official.")
        return export_official(self, path, half=kind == "official-half")


def ffn_linears(model: nn.Module) -> list[str]:
    """Names of all FFN linears, backbone included."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(FFN)]


def class_heads(model: nn.Module) -> list[str]:
    """Names of the linear layers called like class heads."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and HEAD.search(name)]


def extend_classes(model: Detector, num_classes: int) -> Detector:
    """The same model with `num_classes` logit rows, changed in place; old rows keep their values.

    Raises:
        UserError: if the model has more classes already.
    """
    old, added = model.config.num_classes, num_classes - model.config.num_classes
    if added < 0:
        raise UserError(f"the model has {old} classes already; it cannot be cut to {num_classes}.")
    if added:
        model.set_rows(range(old), added)
    return model


def _fresh(layer: nn.Module, kept: int, added: int) -> dict[str, Tensor]:
    """New rows of a head or a label embedding."""
    if isinstance(layer, nn.Embedding):
        return {"weight": layer.weight.new_empty(added, layer.embedding_dim).normal_()}
    like = nn.Linear(layer.in_features, kept + added, device=layer.weight.device, dtype=layer.weight.dtype)
    return {"weight": like.weight[kept:], "bias": like.bias.new_full((added,), PRIOR_BIAS)}
