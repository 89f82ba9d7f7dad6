"""How well a segmenter still answers a segment with its class: the quantity that a forget phase bounds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ks_segmentation.models.criterion import Segments
from ks_segmentation.models.inference import class_scores

LEAST = 1e-30  # where the logarithm and the division stop


def miss_loss(logits: Tensor, masks: Tensor, target: Segments) -> Tensor:
    """[T] nats by which the model misses each segment of one image: -log of its class's share in the scores of all
    classes (`class_scores`), mean over the segment's pixels.

    The answer is the class of the largest score, however small that is. So a bound on the score itself would also be
    reached by a model that is sure of nothing there, and that still answers with the class to be forgotten.

    All queries count, so a segment is small as long as any query answers it. The total loss of the published code,
    in contrast, also grows when "no object" is unlearned elsewhere in the image or when masks, which the classes
    to be kept share, are torn; it can reach its bound in that way without forgetting.

    Args:
        logits: [Q, K + 1] of the last output; masks: [Q, h, w], mask logits of the same.
        target: T segments of the image, at any size.
    """
    if not len(target.classes):
        return logits.float()[:0, 0]
    with torch.autocast(masks.device.type, enabled=False):
        pixels = F.adaptive_avg_pool2d(target.masks.float(), masks.shape[-2:]).flatten(1)  # [T, h * w]
        pixels = pixels / pixels.sum(1, keepdim=True)
        scores = class_scores(logits, masks).flatten(1)  # [K, h * w]
        share = scores[target.classes] / scores.sum(0).clamp(min=LEAST)
        return -(share * pixels).sum(1).clamp(min=LEAST).log()
