"""One-to-one matching of queries to objects, for all layers at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ks_detection.models.parts.boxes import cxcywh_to_xyxy, generalized_iou


class Matches(NamedTuple):
    """Matched pairs of one layer, all [M]: row of the batch, query of the row, object of the row.

    Rows of the batch come in order, and so do the objects of a row: two models' pairs for one batch are of the same objects.
    """

    rows: Tensor
    queries: Tensor
    objects: Tensor


def pad_targets(targets: list[dict], device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] labels and [B, T, 4] boxes, filled up with label 0 and a centre box."""
    most = max((len(target["labels"]) for target in targets), default=0)
    labels = torch.zeros(len(targets), most, dtype=torch.long, device=device)
    boxes = torch.full((len(targets), most, 4), 0.5, device=device)
    for row, target in enumerate(targets):
        count = len(target["labels"])
        labels[row, :count], boxes[row, :count] = target["labels"], target["boxes"].float()
    return labels, boxes


def match_costs(logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor, config: Any) -> Tensor:
    """[..., B, Q, T] cost of giving query q object t: focal class cost, L1 and generalised IoU.

    Args:
        logits: [..., B, Q, C]; boxes: [..., B, Q, 4] cxcywh.
        labels: [B, T]; objects: [B, T, 4] cxcywh.
    """
    alpha, probability = config.focal_alpha, logits.float().sigmoid()
    wanted = labels[:, None, :].expand(*probability.shape[:-1], -1)
    p = probability.gather(-1, wanted)  # [..., B, Q, T]
    negative = (1 - alpha) * p**2 * -(1 - p + 1e-8).log()
    positive = alpha * (1 - p) ** 2 * -(p + 1e-8).log()
    boxes = boxes.float()[..., :, None, :]
    objects = objects[:, None]
    distance = (boxes - objects).abs().sum(-1)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(objects))
    return (
        config.set_cost_class * (positive - negative) + config.set_cost_bbox * distance - config.set_cost_giou * overlap
    )


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: list[dict], config: Any) -> list[Matches]:
    """Per layer the cheapest assignment (Hungarian algorithm); one copy from the device for all.

    Args:
        logits: [L, B, Q, C]; boxes: [L, B, Q, 4]; targets: per image labels and boxes (cxcywh).
    """
    from scipy.optimize import linear_sum_assignment

    labels, objects = pad_targets(targets, boxes.device)
    costs = match_costs(logits, boxes, labels, objects, config)
    costs = costs.nan_to_num(nan=1e8, posinf=1e8, neginf=-1e8).cpu().numpy()
    counts = [len(target["labels"]) for target in targets]
    matches = []
    for layer in costs:
        triples = []
        for row, count in enumerate(counts):
            found, queries = linear_sum_assignment(layer[row, :, :count].T)  # transposed, so that objects come in order
            triples.extend((row, q, t) for q, t in zip(queries.tolist(), found.tolist(), strict=True))
        table = torch.tensor(triples, dtype=torch.long).view(-1, 3).to(boxes.device)
        matches.append(Matches(*table.unbind(1)))
    return matches
