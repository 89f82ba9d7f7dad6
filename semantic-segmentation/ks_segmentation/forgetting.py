"""How well a segmenter still answers a segment with its class: the quantity that a forget phase bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from ks_segmentation.models.parts.pixels import cell_shares
from ks_segmentation.models.parts.targets import Segments

LEAST = 1e-30  # where the logarithm and the division stop


def miss_loss(scores: Tensor, target: Segments) -> Tensor:
    """[T] nats by which the model misses each segment of one image: -log of its class's share in the scores of all
    classes, mean over the segment's pixels.

    The answer is the class of the largest score, however small that is. So a bound on the score itself would also be
    reached by a model that is sure of nothing there, and that still answers with the class to be forgotten.

    All queries of a model that has some count, so a segment is small as long as any query answers it. The total loss of the published code,
    in contrast, also grows when "no object" is unlearned elsewhere in the image or when masks, which the classes
    to be kept share, are torn; it can reach its bound in that way without forgetting.

    Args:
        scores: [K, h, w] of `Segmenter.post_process`.
        target: T segments of the image, at any size.
    """
    if not len(target.classes):
        return scores.float().flatten()[:0]
    with torch.autocast(scores.device.type, enabled=False):
        pixels = cell_shares(target, scores.shape[-2:])  # [T, h * w]
        scores = scores.flatten(1)  # [K, h * w]
        share = scores[target.classes] / scores.sum(0).clamp(min=LEAST)
        return -(share * pixels).sum(1).clamp(min=LEAST).log()
