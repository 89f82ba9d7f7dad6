"""The loss of a detector of transformers: its own, with regions that are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ks_detection.models.hub.config import HubConfig
from ks_detection.models.parts.criterion import SetCriterion, counted
from ks_detection.models.parts.matcher import Matches, match

SILENT = -30.0  # logit of a query in a region to be left alone: no loss and no gradient in float32


class HubCriterion(SetCriterion):
    """transformers' loss of the family, called with what the network would have called it with.

    Args:
        loss: that function; theirs: transformers' config.
    """

    def __init__(self, config: HubConfig, loss: Callable[..., tuple], theirs: Any) -> None:
        super().__init__(config)
        self.loss, self.theirs = loss, theirs

    def _terms(self, outputs: dict, targets: list[dict]) -> tuple[dict[str, Tensor], Matches]:
        """The library's terms, `total` and the pairs of the last layer."""
        call, theirs = dict(outputs["loss_call"]), copy.copy(self.theirs)
        groups = call["logits"].shape[1] // outputs["pred_logits"].shape[1] if hasattr(theirs, "group_detr") else 1
        if hasattr(theirs, "group_detr"):
            theirs.group_detr = groups  # one in eval mode
        if any(len(target.get("ignore", ())) for target in targets):
            self._leave_alone(call, targets, groups)
        labels = [{"class_labels": t["labels"], "boxes": t["boxes"].float()} for t in targets]
        total, terms, _ = self.loss(**_floats(call), labels=labels, device=call["logits"].device, config=theirs)
        return {**terms, "total": total}, self.last_matches(outputs, targets)

    def last_matches(self, outputs: dict, targets: list[dict]) -> Matches:
        return super().last_matches(outputs | {"pred_boxes": outputs["pred_boxes"].clamp(0, 1)}, targets)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["total"]

    def classification(self, terms: dict[str, Tensor]) -> Tensor:
        family = self.config.family
        factor = getattr(self.theirs, family.class_weight) if family.class_weight else 1.0
        return factor * sum(term for name, term in terms.items() if name.startswith(family.class_terms))

    def _leave_alone(self, call: dict[str, Any], targets: list[dict], groups: int) -> None:
        """Silences, in all layers, unmatched queries that lie mostly in a region to be left alone."""
        start = noised(call)
        for logits, boxes in (("logits", "pred_boxes"), ("outputs_class", "outputs_coord"), PROPOSALS, TOKENS):
            if call.get(logits) is None:
                continue
            dim = self.config.family.layer_dim if logits == "outputs_class" else -1
            first = start if logits in ("logits", "outputs_class") else 0
            layers = call[logits].movedim(dim, 0) if dim >= 0 else call[logits][None]
            places = call[boxes].movedim(dim, 0) if dim >= 0 else call[boxes][None]
            silent = self._silent(layers[:, :, first:], places[:, :, first:], targets, groups)
            kept = torch.where(silent[..., None], SILENT, layers[:, :, first:])
            layers = torch.cat([layers[:, :, :first], kept], dim=2)
            call[logits] = layers.movedim(0, dim) if dim >= 0 else layers[0]

    @torch.no_grad()
    def _silent(self, logits: Tensor, boxes: Tensor, targets: list[dict], groups: int) -> Tensor:
        """[L, B, G * Q] True for queries that do not count, of logits [L, B, G * Q, C] and boxes [L, B, G * Q, 4]."""
        logits, boxes = logits.float(), boxes.float().clamp(0, 1)
        parts = []
        for own, places in zip(logits.chunk(groups, 2), boxes.chunk(groups, 2), strict=True):
            factor = counted(places, targets)
            assert factor is not None
            for layer, pairs in enumerate(match(own, places, targets, self.config)):
                factor[layer, pairs.rows, pairs.queries] = 1.0
            parts.append(factor == 0)
        return torch.cat(parts, dim=2)


PROPOSALS = ("enc_topk_logits", "enc_topk_bboxes")  # of the encoder, as the families call them
TOKENS = ("enc_outputs_class", "enc_outputs_coord")


def noised(call: dict[str, Any]) -> int:
    """The number of denoising queries in front of the others."""
    meta = call.get("denoising_meta_values")
    return int(meta["dn_num_split"][0]) if meta else 0


def _floats(call: dict[str, Any]) -> dict[str, Any]:
    return {n: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in call.items()}
