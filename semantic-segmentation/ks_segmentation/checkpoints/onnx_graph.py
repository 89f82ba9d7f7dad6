"""Mask2Former as an ONNX graph, and such a graph in the place of a model."""

from __future__ import annotations

import torch
from ms_deform_attn.onnx_graph import table
from torch import Tensor, nn

from common.errors import UserError
from common.onnx_file import Graph, OnnxFile, Outputs, largest_difference
from ks_segmentation.checkpoints.folder import flat
from ks_segmentation.config.load import load_config
from ks_segmentation.models.mask2former.model import Mask2Former
from ks_segmentation.models.parts.inference import class_scores

OUTPUTS = ("pred_logits", "pred_masks")
LEAST_IOU = 0.999
SIZES = ((2, 3, 96, 128), (1, 3, 128, 160), (3, 3, 64, 192))
CLEAR = 1e-4  # a pixel whose two best scores are nearer than this may be called either


class Answers(nn.Module):
    """(logits [N, Q, K + 1], mask logits [N, Q, H / 4, W / 4]) of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(images)
        return found["pred_logits"], found["pred_masks"]


def graph(model: nn.Module) -> Graph:
    """The graph of a model without adapters. H and W are multiples of 32; they stay open, but with a Swin, whose
    windows are cut for one size: there it is that of the test images, and square.

    Raises:
        UserError: a model of transformers.
    """
    if type(model) is not Mask2Former:
        raise UserError(f"a {type(model).__name__} of transformers is not written as onnx; give --to folder.")
    fixed, side = (
        model.config.MODEL.BACKBONE.NAME == "D2SwinTransformer",
        -(-model.config.INPUT.MIN_SIZE_TEST // 32) * 32,
    )
    sizes = [(n, 3, side, side) for n in (2, 1, 3)] if fixed else SIZES
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(size, generator=generator) for size in sizes]
    settings = {"config": model.config.plain(), "fixed": side if fixed else 0}
    return Graph(Answers(model), OUTPUTS, images, not fixed, settings, difference, table())


def difference(own: Outputs, others: Outputs) -> float:
    """The largest difference of a query's class probabilities; 1 where the IoU of a class is not above 0.999."""
    for logits, masks, other_logits, other_masks in zip(*own, *others, strict=True):
        mine, theirs = (class_scores(*found) for found in ((logits, masks), (other_logits, other_masks)))
        first, second = mine.topk(2, dim=0).values if len(mine) > 1 else (mine[0], mine[0] - 1)
        clear, a, b = first - second > CLEAR, mine.argmax(0), theirs.argmax(0)
        for row in a[clear].unique():
            both, either = ((a == row) & (b == row) & clear).sum(), (((a == row) | (b == row)) & clear).sum()
            if both <= LEAST_IOU * either:
                return 1.0
    return largest_difference([own[0].softmax(-1)], [others[0].softmax(-1)])


class OnnxSegmenter(Mask2Former):
    """A file in the place of a Mask2Former, for what asks for its answers."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__(load_config(None, flat(file.settings["config"])), nn.Identity())
        self.file = file

    @property
    def num_classes(self) -> int:
        return len(self.file.classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        side = self.file.settings["fixed"]
        if side:
            images = nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        logits, masks = self.file(images)
        return {"pred_logits": logits, "pred_masks": masks}
