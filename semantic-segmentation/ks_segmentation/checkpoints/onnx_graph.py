"""Segmenters as ONNX graphs, and such a graph in the place of a model."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from ms_deform_attn.onnx_graph import table
from torch import Tensor, nn

from common.hub import open_batch
from common.onnx_file import Answers, Graph, OnnxFile, Outputs, batches, largest_difference
from ks_segmentation.checkpoints.folder import flat
from ks_segmentation.config.load import load_config
from ks_segmentation.models.parts.inference import class_scores
from ks_segmentation.models.parts.pixels import PixelSegmenter
from ks_segmentation.models.parts.queries import QuerySegmenter
from ks_segmentation.models.parts.segmenter import Segmenter

LEAST_IOU = 0.999
SIZES = ((2, 3, 96, 128), (1, 3, 128, 160), (3, 3, 64, 192))
CLEAR = 1e-4  # a pixel whose two best scores are nearer than this may be called either


def found_in(model: Segmenter, images: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a model that its answers are made of, for images [N, 3, H, W]: of Mask2Former logits [N, Q, K + 1]
    and mask logits [N, Q, H / 4, W / 4]."""
    with open_batch(model.network):
        found = model(images)
    return tuple(found[name] for name in model.answered)


def graph(model: Segmenter) -> Graph:
    """The graph of a model without adapters. H and W are multiples of 32; where the model leaves them open, they stay
    so, else the images are squares of the size of the test images."""
    model.settle()
    side = model.graph_side()
    images = batches((side, side) if side else None, SIZES)
    settings = {"config": model.config.plain(), "fixed": side, "outputs": model.answered}
    return Graph(Answers(model, found_in), model.answered, images, not side, settings, difference, table())


def difference(own: Outputs, others: Outputs) -> float:
    """The largest difference of a class's probability, of queries or pixels; 1 where the IoU of a class is not above
    0.999."""
    for mine, theirs in zip(_scores(own), _scores(others), strict=True):
        first, second = mine.topk(2, dim=0).values if len(mine) > 1 else (mine[0], mine[0] - 1)
        clear, a, b = first - second > CLEAR, mine.argmax(0), theirs.argmax(0)
        for row in a[clear].unique():
            both, either = ((a == row) & (b == row) & clear).sum(), (((a == row) | (b == row)) & clear).sum()
            if both <= LEAST_IOU * either:
                return 1.0
    classes = -1 if len(own) > 1 else 1
    return largest_difference([own[0].softmax(classes)], [others[0].softmax(classes)])


def _scores(found: Outputs) -> list[Tensor]:
    """[K, h, w] of each image: of queries (logits, masks), or of class logits of pixels."""
    if len(found) > 1:
        return [class_scores(logits, masks) for logits, masks in zip(*found, strict=True)]
    return list(found[0].softmax(1))


def in_place_of(file: OnnxFile) -> Segmenter:
    """A file in the place of a model, for what asks for its answers."""
    kind = FromPixels if "logits" in file.settings.get("outputs", ()) else FromQueries
    return kind(file)


class Told(msgspec.Struct):
    """What the file says of itself, as `graph` wrote it."""

    config: dict[str, Any]
    fixed: Annotated[int, msgspec.Meta(ge=0, le=8192)] | None = None


class FromFile(Segmenter):
    """See `in_place_of`; stands first among the bases."""

    def __init__(self, file: OnnxFile) -> None:
        told = file.told(Told)
        super().__init__(load_config(None, flat(told.config)), nn.Identity())
        self.file, self.side = file, told.fixed
        self.place = file.placeholder()

    @property
    def num_classes(self) -> int:
        return len(self.file.classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.side:
            images = nn.functional.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return dict(zip(self.answered, self.file(images, *self.forms()), strict=True))

    def forms(self) -> list[tuple[int, ...]]:
        """Of the outputs, behind the number of images."""
        raise NotImplementedError


class FromQueries(FromFile, QuerySegmenter):
    """A file whose outputs are queries."""

    def forms(self) -> list[tuple[int, ...]]:
        return [(0, self.num_classes + 1), (0, 0, 0)]  # of each query the logits and the mask


class FromPixels(FromFile, PixelSegmenter):
    """A file whose output is a map of classes."""

    def forms(self) -> list[tuple[int, ...]]:
        return [(self.num_classes, 0, 0)]
