"""Box arithmetic: conversions, overlaps and the logit that DINO uses. Always in float32 or better."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] corner boxes of [..., 4] centre boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] centre boxes of [..., 4] corner boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """[...] areas of [..., 4] corner boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] generalised IoU in -1..1 of corner boxes of broadcastable shapes [..., 4].

    Two boxes of no size give 0, not NaN: the denominators are clamped.

    Source: Rezatofighi et al., 2019, arXiv:1902.09630, equation 3.
    """
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap.prod(-1)
    union = area(a) + area(b) - intersection
    enclosing = hull.prod(-1)
    tiny = torch.finfo(a.dtype).tiny
    return intersection / union.clamp(min=tiny) - (enclosing - union) / enclosing.clamp(min=tiny)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of `x`, clamped to `eps`..1 - `eps`. DINO's eps is 1e-3 (Deformable DETR's is 1e-5)."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
