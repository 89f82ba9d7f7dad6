"""The training loss of Mask2Former: match queries to segments, then compare classes and masks.

One matching and one point sampling serve all outputs of an image at once. Letters in shapes: L outputs
(queries, then each layer), Q queries, K classes, T segments of one image, N = min(Q, T) matched, P points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.errors import UserError
from common.layers import linear
from common.lazy import Module
from ks_segmentation.config.load import Config
from ks_segmentation.models.points import random_points, sample, uncertain_points

optimize = Module("scipy.optimize")
LEAST = 1e-37  # share of a point at which the logarithm stops
UNKNOWN = -1  # label of a pixel whose class is not told: some class of another group


class Segments(NamedTuple):
    """What is to be found in one image.

    classes: [T]; masks: [T, H, W] of 0 and 1.
    unknown: [H, W] where the class is not told, or None where all is.
    """

    classes: Tensor
    masks: Tensor
    unknown: Tensor | None = None


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


def segments(labels: Tensor, ignore: int, num_classes: int) -> list[Segments]:
    """One segment per class present in each class-id map of [B, H, W]; pixels of `ignore` or UNKNOWN are in none.

    Raises:
        UserError: an id that no class has.
    """
    found = []
    for label in labels:
        classes = label.unique()
        hidden = label == UNKNOWN
        classes = classes[(classes != ignore) & (classes != UNKNOWN)]
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            wrong = int(classes.max()) if int(classes.max()) >= num_classes else int(classes.min())
            raise UserError(
                f"a mask holds the id {wrong}; this model has ids 0-{num_classes - 1} and {ignore} for ignored pixels."
            )
        found.append(Segments(classes.long(), label == classes[:, None, None], hidden if hidden.any() else None))
    return found


class Criterion:
    """Computes the loss of `Mask2Former.forward`'s outputs; weights and point counts are the config's.

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
            outputs: of `Mask2Former.forward`.
            labels: [B, H, W] class ids, the ignore value where no class is, UNKNOWN where it is not told.

        Raises:
            UserError: an id that no class has.
        """
        last = slice(None) if self.deep else slice(-1, None)
        logits = outputs["logits"][last].float()  # [L, B, Q, K + 1]
        embeddings = outputs["mask_embeddings"][last].float()  # [L, B, Q, C]
        features = outputs["mask_features"].float()
        targets = segments(labels, self.ignore, logits.shape[-1] - 1)
        with torch.autocast(logits.device.type, enabled=False):
            matched = [
                self.match(logits[:, b], embeddings[:, b], features[b], target) for b, target in enumerate(targets)
            ]
            ce = self.class_loss(logits, targets, matched)
            mask, dice = self.mask_loss(embeddings, features, targets, matched)  # [L, sum of N] each
        count = distributed.total(mask.new_tensor(float(sum(len(t.classes) for t in targets)))) / distributed.world()
        count = count.clamp(min=1)
        terms = {"ce": ce, "mask": mask.sum(1) / count, "dice": dice.sum(1) / count}
        total = sum(self.weights[name] * term.sum() for name, term in terms.items())
        return SegmentationLoss(total, terms, matched, targets)

    @torch.no_grad()
    def match(self, logits: Tensor, embeddings: Tensor, features: Tensor, target: Segments) -> Matched:
        """The cheapest assignment for every output of one image.

        Args:
            logits: [L, Q, K + 1].
            embeddings: [L, Q, C] and features [C, h, w]: their product is the masks.
        """
        points = random_points(1, self.points, device=features.device)
        x = linear(-embeddings, sample(features[None], points)[0].T)  # [L, Q, P] negative logits
        t = sample(target.masks[None].to(x.dtype), points)[0]  # [T, P]
        # cross-entropy with t is -log(1 - sigmoid(logit)) - logit t, so that one product gives its mean over points
        mask = linear(x, t)
        outside = x.sigmoid_().clamp_(min=LEAST)
        mask = (mask - outside.log().sum(-1, keepdim=True)) / self.points
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
        self, embeddings: Tensor, features: Tensor, targets: list[Segments], matched: list[Matched]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss of every matched mask at its own points, [L, sum of N] each."""
        losses = []
        for b, (target, pair) in enumerate(zip(targets, matched, strict=True)):
            number, outputs = pair.query.shape[1], pair.query.shape[0]
            if not number:
                continue
            index = pair.query.T[..., None].expand(-1, -1, embeddings.shape[-1])
            chosen = embeddings[:, b].transpose(0, 1).gather(0, index)  # [N, L, C]
            masks = (chosen @ features[b].flatten(1)).view(number * outputs, *features.shape[-2:])
            points = uncertain_points(masks, self.points, self.oversample, self.importance)
            x = sample(masks[:, None], points)[:, 0]  # [N * L, P]
            with torch.no_grad():
                t = self.truth(target, pair, points)
            mask = (F.softplus(x) - x * t).mean(1)
            p = x.sigmoid()
            dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
            losses.append(torch.stack([mask, dice]).view(2, number, outputs).transpose(1, 2))
        if not losses:  # nothing but ignored pixels: zero, with a path to every parameter
            nothing = (embeddings.sum() + features.sum()) * 0
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
