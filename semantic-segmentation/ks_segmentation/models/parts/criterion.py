"""The training loss of segmenters with queries: match queries to segments, then compare classes and masks.

One matching and one point sampling serve all outputs of an image at once. Letters in shapes: L outputs
(queries, then each layer), Q queries, K classes, T segments of one image, N = min(Q, T) matched, P points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.layers import linear
from common.lazy import Module
from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.points import random_points, sample, uncertain_points
from ks_segmentation.models.parts.targets import Segments, segments

optimize = Module("scipy.optimize")
LEAST = 1e-37  # share of a point at which the logarithm stops


class Matched(NamedTuple):
    """Which query answers for which segment of one image, [L, N] each.

    excused: [L, Q] queries that mostly cover pixels of unknown class, or None: unless they are matched,
        nothing says that they are wrong.
    """

    query: Tensor
    segment: Tensor
    excused: Tensor | None = None


class SegmentationLoss(NamedTuple):
    """The loss and what it is made of.

    total: scalar, weighted sum of `terms` over outputs.
    terms: "ce", "mask", "dice" -> [L], unweighted.
    matched, targets: one entry per image.
    """

    total: Tensor
    terms: dict[str, Tensor]
    matched: list[Matched]
    targets: list[Segments]


class Criterion:
    """Computes the loss of the outputs of a `QuerySegmenter`; weights and point counts are the config's.

    Source: Mask2Former, arXiv:2112.01527, sections 3.2.3 and 4.1.
    """

    def __init__(self, config: Config) -> None:
        former = config.MODEL.MASK_FORMER
        self.ignore = config.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.weights = {"ce": former.CLASS_WEIGHT, "mask": former.MASK_WEIGHT, "dice": former.DICE_WEIGHT}
        self.no_object, self.deep = former.NO_OBJECT_WEIGHT, former.DEEP_SUPERVISION
        self.points = former.TRAIN_NUM_POINTS
        self.oversample, self.importance = former.OVERSAMPLE_RATIO, former.IMPORTANCE_SAMPLE_RATIO

    def __call__(self, outputs: dict[str, Tensor], labels: Tensor) -> SegmentationLoss:
        """The loss of one batch.

        Args:
            outputs: of `QuerySegmenter.forward`.
            labels: [B, H, W] class ids, the ignore value where no class is, UNKNOWN where it is not told.

        Raises:
            UserError: an id that no class has.
        """
        logits, embeddings, maps = self.read(outputs, slice(None) if self.deep else slice(-1, None))
        targets = segments(labels, self.ignore, logits.shape[-1] - 1)
        with torch.autocast(logits.device.type, enabled=False):
            matched = self.matched(logits, embeddings, maps, targets)
            ce = self.class_loss(logits, targets, matched)
            mask, dice = self.mask_loss(embeddings, maps, targets, matched)  # [L, sum of N] each
        count = distributed.total(mask.new_tensor(float(sum(len(t.classes) for t in targets)))) / distributed.world()
        count = count.clamp(min=1)
        terms = {"ce": ce, "mask": mask.sum(1) / count, "dice": dice.sum(1) / count}
        total = sum(self.weights[name] * term.sum() for name, term in terms.items())
        return SegmentationLoss(total, terms, matched, targets)

    def answered(self, outputs: dict[str, Tensor], labels: Tensor) -> tuple[list[Matched], list[Segments]]:
        """The pairs of the last output alone, the same as in the loss, and the segments; per image."""
        logits, embeddings, maps = self.read(outputs, slice(-1, None))
        targets = segments(labels, self.ignore, logits.shape[-1] - 1)
        with torch.autocast(logits.device.type, enabled=False):
            return self.matched(logits, embeddings, maps, targets), targets

    def read(self, outputs: dict[str, Tensor], some: slice) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits [L, B, Q, K + 1], mask embeddings [L, B, Q, C] and per image mask features [F, C, h, w] of some outputs."""
        maps = outputs["mask_features"].float().unbind(-4)  # one gradient is put together of theirs, not one per image
        maps = [features[None] if features.dim() == 3 else features[some] for features in maps]
        return outputs["logits"][some].float(), outputs["mask_embeddings"][some].float(), maps

    def matched(self, logits: Tensor, embeddings: Tensor, maps: list[Tensor], targets: list[Segments]) -> list[Matched]:
        """`match` of every image."""
        return [self.match(logits[:, b], embeddings[:, b], maps[b], target) for b, target in enumerate(targets)]

    @torch.no_grad()
    def match(self, logits: Tensor, embeddings: Tensor, features: Tensor, target: Segments) -> Matched:
        """The cheapest assignment for every output of one image.

        Args:
            logits: [L, Q, K + 1].
            embeddings: [L, Q, C] and features [F, C, h, w], F 1 or L: their product is the masks.
        """
        points = random_points(1, self.points, device=features.device)
        seen = sample(features, points.expand(len(features), -1, -1))  # [F, C, P]
        x = linear(-embeddings, seen[0].T) if len(seen) == 1 else -embeddings @ seen  # [L, Q, P] negative logits
        t = sample(target.masks[None].to(x.dtype), points)[0]  # [T, P]
        mask, outside = self.mask_cost(x, t)
        covered = self.points - outside.sum(-1, keepdim=True)
        excused = None
        if target.unknown is not None:
            u = sample(target.unknown[None, None].to(x.dtype), points)[0, 0]  # [P]
            excused = u.sum() - outside @ u > 0.5 * covered[..., 0]
        area = t.sum(1)
        dice = 1 - (2 * (area - linear(outside, t)) + 1) / (covered + area + 1)
        chance = logits.softmax(-1)[..., target.classes]
        cost = self.weights["mask"] * mask + self.weights["dice"] * dice - self.weights["ce"] * chance
        cost = torch.nan_to_num(cost, nan=1e30, posinf=1e30, neginf=-1e30).cpu().numpy()
        pairs = [optimize.linear_sum_assignment(one.T) for one in cost]  # transposed, so that segments come in order
        query = torch.stack([torch.as_tensor(pair[1]) for pair in pairs])
        segment = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        return Matched(query.to(features.device), segment.to(features.device), excused)

    def mask_cost(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cost [L, Q, T] of a query's mask for a segment, mean over points; its share [L, Q, P] outside).

        Args:
            x: [L, Q, P] negative logits, overwritten; t: [T, P].
        """
        # cross-entropy with t is -log(1 - sigmoid(logit)) - logit t, so that one product gives its mean over points
        mask = linear(x, t)
        outside = x.sigmoid_().clamp_(min=LEAST)
        return (mask - outside.log().sum(-1, keepdim=True)) / self.points, outside

    def point_loss(self, x: Tensor, t: Tensor) -> Tensor:
        """[M, P] loss of mask logits against truth at points."""
        return F.softplus(x) - x * t

    def class_loss(self, logits: Tensor, targets: list[Segments], matched: list[Matched]) -> Tensor:
        """[L] weighted mean cross-entropy over queries."""
        outputs, batch, queries, columns = logits.shape
        wanted = torch.full((outputs, batch, queries), columns - 1, device=logits.device)
        for b, (target, pair) in enumerate(zip(targets, matched, strict=True)):
            wanted[:, b] = wanted[:, b].scatter(1, pair.query, target.classes[pair.segment])
        each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(wanted)
        weight = torch.where(wanted == columns - 1, self.no_object, 1.0)
        for b, pair in enumerate(matched):
            if pair.excused is not None:
                weight[:, b] = weight[:, b].masked_fill(pair.excused & (wanted[:, b] == columns - 1), 0)
        norm = (distributed.total(weight.sum((1, 2))) / distributed.world()).clamp(min=1e-6)
        return (each * weight).sum((1, 2)) / norm

    def mask_loss(
        self, embeddings: Tensor, maps: list[Tensor], targets: list[Segments], matched: list[Matched]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of every matched mask at its own points, [L, sum of N] each."""
        losses = []
        for b, (target, pair, features) in enumerate(zip(targets, matched, maps, strict=True)):
            number, outputs = pair.query.shape[1], pair.query.shape[0]
            if not number:
                continue
            index = pair.query.T[..., None].expand(-1, -1, embeddings.shape[-1])
            chosen = embeddings[:, b].transpose(0, 1).gather(0, index)  # [N, L, C]
            if len(features) == 1:
                masks = chosen @ features.squeeze(0).flatten(1)
            else:
                masks = (chosen.transpose(0, 1) @ features.flatten(2)).transpose(0, 1)
            masks = masks.reshape(number * outputs, *features.shape[-2:])
            points = uncertain_points(masks, self.points, self.oversample, self.importance)
            x = sample(masks[:, None], points)[:, 0]  # [N * L, P]
            with torch.no_grad():
                t = self.truth(target, pair, points)
            mask = self.point_loss(x, t).mean(1)
            p = x.sigmoid()
            dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
            losses.append(torch.stack([mask, dice]).view(2, number, outputs).transpose(1, 2))
        if not losses:  # nothing but ignored pixels: zero, with a path to every parameter
            nothing = (embeddings.sum() + sum(m.sum() for m in maps)) * 0
            return nothing.expand(len(embeddings), 1), nothing.expand(len(embeddings), 1)
        mask, dice = torch.cat(losses, 2)
        return mask, dice

    def truth(self, target: Segments, pair: Matched, points: Tensor) -> Tensor:
        """[N * L, P] value of each matched segment at the points [N * L, P, 2] of its mask."""
        outputs, number = pair.segment.shape
        if number == len(target.classes):  # all are matched in every output, in order: no copies needed
            masks, points = target.masks, points.view(number, -1, 2)
        else:
            masks = target.masks[pair.segment.T.flatten()]
        return sample(masks[:, None].to(points.dtype), points).view(number * outputs, -1)
