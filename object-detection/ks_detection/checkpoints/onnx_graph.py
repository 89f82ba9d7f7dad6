"""Detectors as ONNX graphs, and such graphs in the place of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Annotated

import msgspec
import torch
from ms_deform_attn.onnx_graph import table
from torch import Tensor, nn

from common.domain import ClassTable
from common.onnx_file import Answers, Graph, OnnxFile, Outputs, batches
from ks_detection.data import transforms
from ks_detection.models.parts.detector import Detector
from ks_detection.models.parts.postprocess import post_process

OUTPUTS = ("pred_logits", "pred_boxes")
Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]
BEST = 100  # answers of an image that are compared
SIZES = ((2, 3, 160, 192), (1, 3, 192, 224), (3, 3, 128, 256))


def found_in(model: Detector, images: Tensor) -> tuple[Tensor, ...]:
    """`OUTPUTS` of images of one size: logits [N, Q, C], boxes [N, Q, 4] cxcywh in 0..1."""
    found = model.alike(images)
    return tuple(found[name] for name in OUTPUTS)


def graph(model: Detector, recipe: transforms.Recipe) -> Graph:
    """The graph of a detector without adapters. Sizes of images stay open where the detector allows."""
    fixed = model.graph_size(recipe.test_size)
    settings = {"num_select": model.config.num_select, "fixed": fixed, "smooth": model.smooth}
    return Graph(Answers(model, found_in), OUTPUTS, batches(fixed, SIZES), not fixed, settings, difference, table())


def difference(own: Outputs, others: Outputs) -> float:
    """The largest difference of score or box (in parts of the image) among the best answers of each image.

    Answers are paired by class, score and place, because equal scores come in any order.
    """
    size, worst = [(1, 1)] * len(own[0]), 0.0
    pairs = (post_process(dict(zip(OUTPUTS, found, strict=True)), size, BEST) for found in (own, others))
    for mine, theirs in zip(*pairs, strict=True):
        worst = max(worst, float((mine["scores"] - theirs["scores"]).abs().max()))
        apart = (mine["boxes"][:, None] - theirs["boxes"]).abs().amax(-1)
        apart = torch.maximum(apart, (mine["scores"][:, None] - theirs["scores"]).abs())
        apart = apart.masked_fill(mine["labels"][:, None] != theirs["labels"], 1.0)
        last = mine["scores"] > mine["scores"].min() + 1e-5  # of those that tie for the last place some stay out
        worst = max([worst, *apart.amin(1)[last].tolist()])
    return worst


class Told(msgspec.Struct):
    """What the file says of itself, as `graph` wrote it."""

    num_select: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    fixed: tuple[Side, Side] | None = None
    smooth: bool = True


class OnnxDetector(Detector):
    """A file in the place of a detector, for what only asks for its answers."""

    def __init__(self, file: OnnxFile) -> None:
        told = file.told(Told)
        super().__init__(SimpleNamespace(num_select=told.num_select, num_classes=len(file.classes)))
        self.size, self.smooth = told.fixed, told.smooth
        self.file, self.class_table = file, ClassTable(tuple(file.classes))
        self.place = file.placeholder()

    def forward(self, images: Sequence[Tensor], targets: None = None) -> dict[str, Tensor]:
        """One image after the other: a batch of the file has one size. A file has no loss, and takes no targets."""
        found = []
        for image in images:
            batch = image[None]
            if self.size:
                batch = nn.functional.interpolate(batch, self.size, mode="bilinear", antialias=self.smooth)
            found.append(self.file(batch, (0, len(self.file.classes)), (0, 4)))
        return {name: torch.cat(parts) for name, parts in zip(OUTPUTS, zip(*found, strict=True), strict=True)}
