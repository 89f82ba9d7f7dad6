"""DINO's loss: that of all detectors, and the same terms on the denoising queries."""

import torch
from torch import Tensor

from ks_detection.models.dino.denoising import Denoising
from ks_detection.models.parts.criterion import SetCriterion
from ks_detection.models.parts.matcher import Matches


class Criterion(SetCriterion):
    """With `_dn`, `_dn_0`..: 39 terms for 6 decoder layers."""

    def _more_terms(self, outputs: dict, targets: list[dict], count: Tensor) -> dict[str, Tensor]:
        layers, denoising = outputs.get("dn_outputs"), outputs.get("denoising")
        suffixes = ["_dn", *(f"_dn_{i}" for i in range(len(outputs["aux_outputs"])))]
        if denoising is None:
            zero = outputs["pred_boxes"].new_zeros(())
            kinds = ("loss_ce", "loss_bbox", "loss_giou", "loss_xy", "loss_hw")
            return {f"{kind}{suffix}": zero for suffix in suffixes for kind in kinds}
        ordered = [layers[-1], *layers[:-1]]
        logits = torch.stack([layer["pred_logits"].float() for layer in ordered])
        boxes = torch.stack([layer["pred_boxes"].float() for layer in ordered])
        matches = [positive_matches(denoising, targets)] * len(ordered)
        return self._layer_terms(logits, boxes, matches, targets, count * denoising.groups, suffixes)


def positive_matches(denoising: Denoising, targets: list[dict]) -> Matches:
    """The positives' pairs, known by construction: slot t of every group belongs to object t."""
    device = denoising.labels.device
    starts = torch.arange(denoising.groups, device=device) * 2 * denoising.slots
    rows, queries, objects = [], [], []
    for row, target in enumerate(targets):
        own = torch.arange(len(target["labels"]), device=device)
        queries.append((starts[:, None] + own).flatten())
        objects.append(own.repeat(denoising.groups))
        rows.append(torch.full_like(queries[-1], row))
    return Matches(torch.cat(rows), torch.cat(queries), torch.cat(objects))
