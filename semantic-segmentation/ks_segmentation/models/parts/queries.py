"""Segmenters that answer with queries: each has a class or none, and a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.layers import channels_last
from ks_segmentation.models.parts.criterion import Criterion, Matched
from ks_segmentation.models.parts.inference import class_scores
from ks_segmentation.models.parts.segmenter import Outputs, Regions, Resize, Rows, Segmenter
from ks_segmentation.models.parts.targets import Segments


class Queries(NamedTuple):
    """The queries after each of L outputs (before and behind layers), the last being the answer.

    states: [L, B, Q, D], what the class layer reads; logits: [L, B, Q, K + 1], the last column "no object".
    mask_embeddings: [L, B, Q, C]; their product with mask_features is the mask.
    mask_features: [B, C, h, w], or [L, B, C, h, w] where every output has its own.
    """

    states: Tensor
    logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor


class QuerySegmenter(Segmenter):
    """A segmenter of which only `queries`, its class layer and its files are its own."""

    rows_behind = 1  # "no object"
    answered = ("pred_logits", "pred_masks")

    def queries(self, images: Tensor) -> Queries:
        """What the queries see, in training mode too."""
        raise NotImplementedError

    def criterion(self) -> Criterion:
        """The loss that it is trained with."""
        return Criterion(self.config)

    def forward(self, images: Tensor) -> Outputs:
        """What the queries see, in training mode too.

        Args:
            images: [B, 3, H, W], normalised (`normalise`).

        Returns:
            pred_logits: [B, Q, K + 1], the last column "no object".
            pred_masks: [B, Q, h, w] logits.
            embedding: [B, Q, D], what the class layer reads.
            logits, mask_embeddings, mask_features: see `Queries`.
        """
        return self.outputs(self.queries(channels_last(images, exact=False)))

    def outputs(self, found: Queries) -> Outputs:
        """See `forward`."""
        features = found.mask_features
        return {
            "pred_logits": found.logits[-1],
            "pred_masks": masks_of(found.mask_embeddings[-1], features if features.dim() == 4 else features[-1]),
            "embedding": found.states[-1],
            "logits": found.logits,
            "mask_embeddings": found.mask_embeddings,
            "mask_features": features,
        }

    def part(self, outputs: Outputs, images: slice) -> Outputs:
        by_output = {"logits", "mask_embeddings"} | (
            {"mask_features"} if outputs["mask_features"].dim() == 5 else set()
        )
        return {name: value[:, images] if name in by_output else value[images] for name, value in outputs.items()}

    def judge(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, list[Rows]]:
        """The rows of a segment are those of its query of the last output."""
        loss = self.criterion()(outputs, labels)
        return loss.total, [
            self._rows(outputs, b, *pair) for b, pair in enumerate(zip(loss.matched, loss.targets, strict=True))
        ]

    def rows(self, outputs: Outputs, labels: Tensor) -> list[Rows]:
        matched, targets = self.criterion().answered(outputs, labels)
        return [self._rows(outputs, b, *pair) for b, pair in enumerate(zip(matched, targets, strict=True))]

    def _rows(self, outputs: Outputs, b: int, matched: Matched, target: Segments) -> Rows:
        query, segment = matched.query[-1], matched.segment[-1]
        scores, embedding = outputs["pred_logits"][b, query, :-1].float(), outputs["embedding"][b, query].float()
        return Rows(target, segment, scores, embedding)

    def post_process(self, outputs: Outputs, index: int | slice, resize: Resize = lambda maps: maps) -> Tensor:
        return class_scores(outputs["pred_logits"][index], resize(outputs["pred_masks"][index]))

    def regions(self, outputs: Outputs, index: int, resize: Resize) -> Regions:
        """Masks where their logit is above 0; a query is called by its best class, "no object" included."""
        logits = outputs["pred_logits"][index].float()
        masks = resize(outputs["pred_masks"][index].float()) > 0
        return Regions(masks, logits.argmax(-1), logits.softmax(-1)[:, :-1].amax(-1))


def masks_of(embeddings: Tensor, features: Tensor) -> Tensor:
    """Mask logits [..., B, Q, h, w] of embeddings [..., B, Q, C] on mask features [B, C, h, w]."""
    return torch.unflatten(embeddings @ features.flatten(2), -1, features.shape[-2:])
