"""Contrastive denoising: ground truth boxes, disturbed a little and a lot, as extra decoder queries."""

from typing import NamedTuple

import torch
from torch import Tensor

from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.parts.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ks_detection.models.parts.matcher import pad_targets


class Denoising(NamedTuple):
    """Extra queries and how to score them.

    labels: [B, P] noised class ids; boxes: [B, P, 4] noised cxcywh; used: [B, P] bool, False on empty slots;
    groups: number of groups G; slots: positives per group (P = 2 * slots * groups).
    Slot order in a group: `slots` positives, then `slots` negatives.
    """

    labels: Tensor
    boxes: Tensor
    used: Tensor
    groups: int
    slots: int


def group_count(config: DinoConfig, most_objects: int) -> int:
    """Groups that make about 2 * `dn_number` queries, at least 1; below 50 as published, undivided."""
    doubled = 2 * config.dn_number
    if most_objects == 0:
        return 1
    return max(1, doubled // (2 * most_objects) if doubled >= 100 else doubled)


def make_denoising(config: DinoConfig, targets: list[dict]) -> Denoising | None:
    """Denoising queries for a batch, or None if it is switched off or no image has an object.

    Source: DINO, section 3.3; noise as published: classes flip at half of `dn_label_noise_ratio`, corners
    move by up to half a side (positives) or half to a whole side (negatives), times `dn_box_noise_scale`.
    """
    slots = max((len(target["labels"]) for target in targets), default=0)
    if not config.use_dn or config.dn_number < 1 or slots == 0:
        return None
    groups = group_count(config, slots)
    device = targets[0]["boxes"].device
    labels, boxes = pad_targets(targets, device)
    counts = torch.tensor([[len(target["labels"])] for target in targets], device=device)
    used = (torch.arange(slots, device=device) < counts).repeat(1, 2 * groups)
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    negative = (torch.arange(2 * groups * slots, device=device) // slots) % 2 == 1
    labels = _noised_labels(labels, config)
    return Denoising(labels, _noised_boxes(boxes, negative, config), used, groups, slots)


def _noised_labels(labels: Tensor, config: DinoConfig) -> Tensor:
    flip = torch.rand(labels.shape, device=labels.device) < config.dn_label_noise_ratio * 0.5
    return torch.where(flip, torch.randint_like(labels, 0, config.num_classes), labels)


def _noised_boxes(boxes: Tensor, negative: Tensor, config: DinoConfig) -> Tensor:
    if config.dn_box_noise_scale <= 0:
        return boxes
    reach = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) / 2
    size = torch.rand_like(boxes) + negative[None, :, None]
    sign = torch.randint_like(boxes, 0, 2) * 2 - 1
    corners = cxcywh_to_xyxy(boxes) + sign * size * reach * config.dn_box_noise_scale
    return xyxy_to_cxcywh(corners.clamp(0, 1))


def blocked_pairs(denoising: Denoising, num_queries: int) -> Tensor:
    """[P + Q, P + Q] bool, True where the row's query may not see the column's.

    Matching queries see no denoising query (they hold the answer), a group sees no other group.
    """
    width, size = 2 * denoising.slots, 2 * denoising.slots * denoising.groups
    device = denoising.labels.device
    group = torch.arange(size + num_queries, device=device) // width
    group[size:] = -1
    other = group[:, None] != group[None, :]
    return other & (group[None, :] >= 0)
