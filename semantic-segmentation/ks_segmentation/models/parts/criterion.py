"""The training loss of segmenters with queries: match queries to segments, then compare classes and masks.

One matching and one point sampling serve all outputs of as many images as a bound on memory allows. Letters in shapes:
L outputs (queries, then each layer), B images, Q queries, K classes, T segments of one image (padded to the most of any), N =
min(Q, T) matched, M of all images, P points, F maps of mask features (1, or one for each output).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common import distributed
from common.layers import linear
from common.lazy import Module
from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.points import random_points, sample, uncertain_points
from ks_segmentation.models.parts.targets import Segments, segments

optimize = Module("scipy.optimize")
LEAST = 1e-37  # share of a point at which the logarithm stops
TOGETHER = 2**22  # values of all queries at all points, or of their masks, that are made at once


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
            mask, dice = self.mask_loss(embeddings, maps, targets, matched)  # [L, M] each
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
        """Logits [B, L, Q, K + 1] and mask embeddings [B, L, Q, C] of some outputs, and mask features [b, F, C, h, w] of
        groups of b images that are compared at once."""
        logits, embeddings = (outputs[name][some].float().transpose(0, 1) for name in ("logits", "mask_embeddings"))
        maps = outputs["mask_features"].float()
        maps = maps.unsqueeze(1) if maps.dim() == 4 else maps.transpose(0, 1)[:, some]
        each = embeddings[0, ..., 0].numel() * max(self.points, maps.shape[-2:].numel())
        # one gradient is put together of those of all groups
        return logits, embeddings, list(maps.split(max(1, TOGETHER // max(1, each))))

    def matched(
        self, logits: Tensor, embeddings: Tensor, maps: Sequence[Tensor], targets: Sequence[Segments]
    ) -> list[Matched]:
        """`match` of every image."""
        return [m for b, features in _groups(maps) for m in self.match(logits[b], embeddings[b], features, targets[b])]

    @torch.no_grad()
    def match(self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Sequence[Segments]) -> list[Matched]:
        """The cheapest assignment for every output of each image.

        Args:
            logits: [B, L, Q, K + 1].
            embeddings: [B, L, Q, C] and features [B, F, C, h, w]: their product is the masks.
        """
        shape, count = logits.shape[:3], features.shape[1]
        points = random_points(len(features), self.points, device=features.device)
        seen = sample(features.flatten(0, 1), points.repeat_interleave(count, 0)).unflatten(0, (-1, count))
        t = sample(pad_sequence([one.masks for one in targets], batch_first=True).to(seen.dtype), points)  # [B, T, P]
        u = _untold(targets, points)
        # one output at a time, so that what is computed at the points stays in the cache
        pairs = zip(embeddings.unbind(1), seen.expand(-1, shape[1], -1, -1).unbind(1), strict=True)
        prices, excuses = zip(*(self.mask_price(own, maps, t, u) for own, maps in pairs), strict=True)
        ids = pad_sequence([one.classes for one in targets], batch_first=True)  # [B, T]
        chance = logits.softmax(-1).gather(-1, ids[:, None, None].expand(*shape, -1))
        cost = torch.stack(prices, 1) - self.weights["ce"] * chance
        cost = torch.nan_to_num(cost, nan=1e30, posinf=1e30, neginf=-1e30).cpu().numpy()
        excused = [None] * len(targets) if u is None else torch.stack(excuses, 1).unbind()
        found = []
        for one, own, untold in zip(targets, cost, excused, strict=True):
            # transposed, so that segments come in order
            cheapest = [optimize.linear_sum_assignment(output[:, : len(one.classes)].T) for output in own]
            segment, query = torch.as_tensor(np.array(cheapest), device=features.device).unbind(1)  # [L, N] each
            found.append(Matched(query, segment, untold))
        return found

    def mask_price(
        self, embeddings: Tensor, seen: Tensor, t: Tensor, u: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(weighted cost [B, Q, T] of a query's mask for a segment; [B, Q] whether it mostly covers what is untold, or None).

        Args:
            embeddings: [B, Q, C]; seen: [B, C, P], mask features at the points; t: [B, T, P] segments; u: [B, 1, P] untold.
        """
        mask, outside = self.mask_cost(products(-embeddings, seen.transpose(1, 2)), t)
        covered, area = self.points - outside.sum(-1, keepdim=True), t.sum(-1)[:, None]
        dice = 1 - (2 * (area - products(outside, t)) + 1) / (covered + area + 1)
        excused = None if u is None else u.sum(-1) - products(outside, u)[..., 0] > 0.5 * covered[..., 0]
        return self.weights["mask"] * mask + self.weights["dice"] * dice, excused

    def mask_cost(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cost [B, Q, T] of a query's mask for a segment, mean over points; its share [B, Q, P] outside).

        Args:
            x: [B, Q, P] negative logits, overwritten; t: [B, T, P].
        """
        # cross-entropy with t is -log(1 - sigmoid(logit)) - logit t, so that one product gives its mean over points
        mask = products(x, t)
        outside = x.sigmoid_().clamp_(min=LEAST)
        return (mask - outside.log().sum(-1, keepdim=True)) / self.points, outside

    def point_loss(self, x: Tensor, t: Tensor) -> Tensor:
        """[M, P] loss of mask logits against truth at points."""
        return F.softplus(x) - x * t

    def class_loss(self, logits: Tensor, targets: Sequence[Segments], matched: Sequence[Matched]) -> Tensor:
        """[L] weighted mean cross-entropy over queries of logits [B, L, Q, K + 1]."""
        nothing = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:3], nothing, device=logits.device)
        for own, target, pair in zip(wanted, targets, matched, strict=True):
            own.scatter_(1, pair.query, target.classes[pair.segment])
        each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(wanted)
        weight = torch.where(wanted == nothing, self.no_object, 1.0)
        for own, rows, pair in zip(weight, wanted, matched, strict=True):
            if pair.excused is not None:
                own.masked_fill_(pair.excused & (rows == nothing), 0)
        norm = (distributed.total(weight.sum((0, 2))) / distributed.world()).clamp(min=1e-6)
        return (each * weight).sum((0, 2)) / norm

    def mask_loss(
        self, embeddings: Tensor, maps: Sequence[Tensor], targets: Sequence[Segments], matched: Sequence[Matched]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of every matched mask at its own points, [L, M] each."""
        losses = []
        for b, features in _groups(maps):
            masks = _chosen(embeddings[b], features, matched[b])  # [M L, h, w]
            if not len(masks):
                continue
            numbers = [pair.query.numel() for pair in matched[b]]
            points = uncertain_points(masks, self.points, self.oversample, self.importance, numbers)
            x = sample(masks[:, None], points)[:, 0]  # [M L, P]
            with torch.no_grad():
                t = self.truth(targets[b], matched[b], points)
            mask = self.point_loss(x, t).mean(1)
            p = x.sigmoid()
            dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
            losses.append(torch.stack([mask, dice]).unflatten(1, (-1, embeddings.shape[1])).transpose(1, 2))
        if not losses:  # nothing but ignored pixels: zero, with a path to every parameter
            nothing = (embeddings.sum() + sum(m.sum() for m in maps)) * 0
            return nothing.expand(embeddings.shape[1], 1), nothing.expand(embeddings.shape[1], 1)
        mask, dice = torch.cat(losses, 2)
        return mask, dice

    def truth(self, targets: Sequence[Segments], matched: Sequence[Matched], points: Tensor) -> Tensor:
        """[M L, P] value of each matched segment at the points [M L, P, 2] of its mask."""
        pairs = list(zip(targets, matched, strict=True))
        if all(pair.segment.shape[1] == len(one.classes) for one, pair in pairs):
            # all are matched in every output, in order: no copies for each output
            masks = torch.cat([one.masks for one in targets])
        else:
            masks = torch.cat([one.masks[pair.segment.T.flatten()] for one, pair in pairs])
        places = points.view(len(masks), -1, 2)
        return sample(masks[:, None].to(points.dtype), places).view(points.shape[:2])


def products(x: Tensor, y: Tensor) -> Tensor:
    """[B, M, T] x y' of each image, x [B, M, C] and y [B, T, C]; a single one by `linear`, which is faster."""
    return linear(x[0], y[0])[None] if len(x) == 1 else x @ y.transpose(1, 2)


def _untold(targets: Sequence[Segments], points: Tensor) -> Tensor | None:
    """[B, 1, P] share of pixels of unknown class at points [B, P, 2], or None where all are told."""
    if all(one.unknown is None for one in targets):
        return None
    none = targets[0].masks.new_zeros(targets[0].masks.shape[1:])
    untold = torch.stack([none if one.unknown is None else one.unknown for one in targets])
    return sample(untold[:, None].to(points.dtype), points)


def _groups(maps: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Which images belong to each of the groups of mask features, and these."""
    start = 0
    for features in maps:
        yield slice(start, start + len(features)), features
        start += len(features)


def _chosen(embeddings: Tensor, features: Tensor, matched: Sequence[Matched]) -> Tensor:
    """[M L, h, w] mask logits of the matched queries, image by image and segment by segment.

    Args:
        embeddings: [B, L, Q, C]; features: [B, F, C, h, w].
    """
    outputs, size = embeddings.shape[1], features.shape[-2:]
    numbers = [pair.query.shape[1] for pair in matched]
    query = pad_sequence([pair.query.T for pair in matched], batch_first=True)  # [B, N, L]
    index = query[..., None].expand(-1, -1, -1, embeddings.shape[-1])
    chosen = embeddings.transpose(1, 2).gather(1, index)  # [B, N, L, C]
    maps = features.flatten(3)  # [B, F, C, h w]
    if maps.shape[1] > 1:
        masks = (chosen.transpose(1, 2) @ maps).transpose(1, 2)
    else:
        masks = products(chosen.flatten(1, 2), maps[:, 0].transpose(1, 2))
    masks = masks.reshape(len(matched), -1, outputs, *size)  # [B, N, L, h, w]
    if min(numbers) < max(numbers):
        masks = masks[torch.arange(masks.shape[1]) < torch.tensor(numbers)[:, None]]
    return masks.reshape(-1, *size)
