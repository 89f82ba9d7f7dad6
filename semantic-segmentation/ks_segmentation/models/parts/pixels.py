"""Segmenters that give every pixel a class; a segment is the mask of a class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.layers import channels_last
from ks_segmentation.models.parts.segmenter import Outputs, Regions, Resize, Rows, Segmenter
from ks_segmentation.models.parts.targets import UNKNOWN, segments


class Maps(NamedTuple):
    """Class logits of every cell of a map.

    logits: [B, K, h, w]; features: [B, D, h, w], what the class layer reads.
    auxiliary: [B, K, h', w'] logits of a second head that only trains, or None.
    """

    logits: Tensor
    features: Tensor
    auxiliary: Tensor | None = None


class PixelSegmenter(Segmenter):
    """A segmenter of which only `maps`, its class layer and its files are its own.

    Its loss is the cross-entropy of logits at the size of the labels, mean over pixels whose class is told.

    auxiliary_weight: of the second head's loss.
    """

    auxiliary_weight = 0.0
    answered = ("logits",)

    def maps(self, images: Tensor) -> Maps:
        """The class logits, in training mode too."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Outputs:
        """`logits`, `features` and perhaps `auxiliary`; see `Maps`."""
        return {name: value for name, value in self.maps(channels_last(images))._asdict().items() if value is not None}

    def judge(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, list[Rows]]:
        """The row of a segment is the mean over its cells, of logits and of features."""
        ignore, logits = self.config.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, outputs["logits"].float()
        targets = segments(labels, ignore, logits.shape[1])
        loss = _cross_entropy(logits, labels, ignore)
        if "auxiliary" in outputs:
            loss = loss + self.auxiliary_weight * _cross_entropy(outputs["auxiliary"].float(), labels, ignore)
        rows = []
        for target, own, features in zip(targets, logits, outputs["features"].float(), strict=True):
            shares = cell_shares(target.masks, own.shape[-2:])  # [T, h * w]
            every = torch.arange(len(shares), device=labels.device)
            rows.append(Rows(target, every, shares @ own.flatten(1).T, shares @ features.flatten(1).T))
        return loss, rows

    def post_process(self, outputs: Outputs, index: int | slice, resize: Resize = lambda maps: maps) -> Tensor:
        with torch.autocast(outputs["logits"].device.type, enabled=False):
            return resize(outputs["logits"][index].float()).softmax(-3)

    def regions(self, outputs: Outputs, index: int, resize: Resize) -> Regions:
        """One per class that is the answer somewhere; it is as sure as its pixels are on the average."""
        sure, answer = self.post_process(outputs, index, resize).max(0)
        called = answer.unique()
        masks = answer == called[:, None, None]
        return Regions(masks, called, (masks * sure).sum((1, 2)) / masks.sum((1, 2)))


def cell_shares(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """[T, h * w] share of each cell in the area of each segment of masks [T, H, W]."""
    cells = F.adaptive_avg_pool2d(masks.float(), size).flatten(1)
    return cells / cells.sum(1, keepdim=True)


def _cross_entropy(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Mean over the pixels of all ranks whose class is told."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        labels = labels.masked_fill(labels == UNKNOWN, ignore)
        count = distributed.total((labels != ignore).sum().to(logits.dtype)) / distributed.world()
        return F.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum") / count.clamp(min=1)
