"""How well a detector still sees an object: the quantity that a forget phase bounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ks_detection.models.parts.boxes import area, cxcywh_to_xyxy
from ks_detection.models.parts.matcher import Matches


def miss_loss(outputs: dict, targets: list[dict], items: Matches) -> Tensor:
    """[M] nats by which the detector misses each object, mean over its layers.

    For every layer, -log of the probability that the queries on the object (IoU at least 0.5, or the nearest)
    together give to its class. A detector that finds the object with any query has a small value; the total loss
    of the published code, in contrast, also grows when boxes are moved or other objects are lost, so that it can
    reach its bound without forgetting.

    Args:
        outputs: what the detector returns; targets: per image labels and boxes (cxcywh).
        items: rows of the batch and objects to be looked at (queries are not used).
    """
    layers = [outputs, *outputs["aux_outputs"]]
    if outputs.get("interm_outputs"):
        layers.append(outputs["interm_outputs"])
    if len(items.rows) == 0:
        return outputs["pred_logits"].new_zeros(0)
    pairs = list(zip(items.rows.tolist(), items.objects.tolist(), strict=True))
    labels = torch.stack([targets[row]["labels"][number] for row, number in pairs])
    objects = cxcywh_to_xyxy(torch.stack([targets[row]["boxes"][number] for row, number in pairs]).float())
    losses = []
    for layer in layers:
        boxes = cxcywh_to_xyxy(layer["pred_boxes"].detach().float())[items.rows]  # [M, Q, 4]
        overlap = _iou(boxes, objects[:, None])
        near = (overlap >= 0.5) | (overlap == overlap.max(-1, keepdim=True).values)
        own = layer["pred_logits"].float()[items.rows].gather(-1, labels[:, None, None].expand(-1, boxes.shape[1], 1))
        seen = own[..., 0].masked_fill(~near, -torch.inf).logsumexp(-1)
        losses.append(F.softplus(-seen))
    return torch.stack(losses).mean(0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = sides.prod(-1)
    return shared / (area(a) + area(b) - shared).clamp(min=1e-9)
