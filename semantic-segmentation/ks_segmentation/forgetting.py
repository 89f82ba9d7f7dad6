"""How well a segmenter still answers a segment with its class: the quantity that a forget phase bounds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ks_segmentation.criterion import Segments

LEAST = 1e-30  # score at which the logarithm stops


def miss_loss(logits: Tensor, masks: Tensor, target: Segments) -> Tensor:
    """[T] nats by which the model misses each segment of one image: -log of the score of its class (`class_scores`,
    what the answer is the largest of), mean over the segment's pixels.

    All queries count, so a segment is small as long as any query answers it. The total loss of the published code,
    in contrast, also grows when "no object" is unlearned elsewhere in the picture or when masks, which the classes
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
        covered = masks.float().sigmoid().flatten(1) @ pixels.T  # [Q, T] share of the segment in each mask
        chance = logits.float().softmax(-1)[:, target.classes]
        return -(chance * covered).sum(0).clamp(min=LEAST).log()
