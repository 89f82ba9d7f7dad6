"""How well a segmenter still answers a segment with its class: the quantity that a forget phase bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ks_segmentation.models.parts.pixels import cell_shares
from ks_segmentation.models.parts.targets import Segments

LEAST = 1e-30  # where the logarithm and the division stop


def miss_loss(scores: Tensor, targets: Sequence[Segments]) -> Tensor:
    """[M] nats by which the model misses each segment of each image: -log of its class's share in the scores of all
    classes, mean over the segment's pixels.

    The answer is the class of the largest score, however small that is. So a bound on the score itself would also be
    reached by a model that is sure of nothing there, and that still answers with the class to be forgotten.

    All queries of a model that has some count, so a segment is small as long as any query answers it. The total loss of the published code,
    in contrast, also grows when "no object" is unlearned elsewhere in the image or when masks, which the classes
    to be kept share, are torn; it can reach its bound in that way without forgetting.

    Args:
        scores: [B, K, h, w] of `Segmenter.post_process`.
        targets: segments of each of the images, at any size.
    """
    counts = torch.tensor([len(one.classes) for one in targets])
    if not counts.any():
        return scores.float().flatten()[:0]
    with torch.autocast(scores.device.type, enabled=False):
        pixels = cell_shares(torch.cat([one.masks for one in targets]), scores.shape[-2:])  # [M, h * w]
        image = torch.arange(len(targets)).repeat_interleave(counts).to(scores.device)
        scores = scores.flatten(2)  # [B, K, h * w]
        share = scores[image, torch.cat([one.classes for one in targets])] / scores.sum(1).clamp(min=LEAST)[image]
        return -(share * pixels).sum(1).clamp(min=LEAST).log()
