"""The loss of DETR-like detectors: focal, L1 and generalised IoU on the final, auxiliary and intermediate outputs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import distributed
from ks_detection.models.parts.boxes import area, cxcywh_to_xyxy, generalized_iou
from ks_detection.models.parts.matcher import Matches, match, pad_targets


def focal_loss(logits: Tensor, wanted: Tensor, alpha: float) -> Tensor:
    """Elementwise sigmoid focal loss with gamma 2. Same shape as `logits`.

    Source: Lin et al., 2017, arXiv:1708.02002, equation 5.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    miss = probability + wanted - 2 * probability * wanted  # 1 - p of the right answer
    return (alpha * wanted + (1 - alpha) * (1 - wanted)) * entropy * miss**2


class SetCriterion:
    """Terms of the loss by their published names, and their weighted sum."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, outputs: dict, targets: list[dict]) -> dict[str, Tensor]:
        """Unweighted terms: `loss_{ce,bbox,giou}` of the last layer, `_0`.. of the layers before, `_interm`,
        what a detector adds; for the log `class_error`, `cardinality_error`, `loss_xy`, `loss_hw`.

        Args:
            outputs: what the detector returns.
            targets: per image `labels` [T] and `boxes` [T, 4] cxcywh, and, where there are regions to be left
                alone, `ignore` [K, 4]: unmatched queries mostly inside them count neither way.
        """
        return self.with_matches(outputs, targets)[0]

    def with_matches(self, outputs: dict, targets: list[dict]) -> tuple[dict[str, Tensor], Matches]:
        """The terms, and the pairs of the last layer."""
        with torch.autocast(outputs["pred_boxes"].device.type, enabled=False):
            return self._terms(outputs, targets)

    def last_matches(self, outputs: dict, targets: list[dict]) -> Matches:
        """The pairs of the last layer alone, the same as beside the terms."""
        with torch.autocast(outputs["pred_boxes"].device.type, enabled=False):
            logits, boxes = (outputs[name].float()[None] for name in ("pred_logits", "pred_boxes"))
            return match(logits, boxes, targets, self.config)[0]

    def _terms(self, outputs: dict, targets: list[dict]) -> tuple[dict[str, Tensor], Matches]:
        layers = [outputs, *outputs["aux_outputs"]]
        suffixes = ["", *(f"_{i}" for i in range(len(outputs["aux_outputs"])))]
        if outputs.get("interm_outputs"):
            layers.append(outputs["interm_outputs"])
            suffixes.append("_interm")
        logits = torch.stack([layer["pred_logits"].float() for layer in layers])  # [L, B, Q, C]
        boxes = torch.stack([layer["pred_boxes"].float() for layer in layers])
        matches = match(logits, boxes, targets, self.config)
        count = self.object_count(targets, boxes.device)
        terms = self._layer_terms(logits, boxes, matches, targets, count, suffixes, counted(boxes, targets))
        terms |= self._log_terms(logits[0], matches[0], targets)
        return terms | self._more_terms(outputs, targets, count), matches[0]

    def _more_terms(self, outputs: dict, targets: list[dict], count: Tensor) -> dict[str, Tensor]:
        """Terms of outputs that only this detector has."""
        return {}

    def object_count(self, targets: list[dict], device: torch.device) -> Tensor:
        """Objects per rank, averaged over ranks, at least 1."""
        total = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=device)
        return (distributed.total(total) / distributed.world()).clamp(min=1)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum that is trained on."""
        return sum(self.weight(name) * term for name, term in terms.items() if self.weight(name))

    def classification(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the focal terms alone."""
        return sum(self.weight(name) * term for name, term in terms.items() if name.startswith("loss_ce"))

    def weight(self, name: str) -> float:
        """Factor of a term in the total; 0 for the terms that are only logged."""
        config = self.config
        kinds = {
            "loss_ce": config.cls_loss_coef,
            "loss_bbox": config.bbox_loss_coef,
            "loss_giou": config.giou_loss_coef,
        }
        kind = next((kind for kind in kinds if name == kind or name.startswith(kind + "_")), None)
        if kind is None:
            return 0.0
        return kinds[kind] * (config.interm_loss_coef if name.endswith("_interm") else 1.0)

    def _layer_terms(self, logits, boxes, matches: list[Matches], targets, count, suffixes, factor=None) -> dict:
        labels, objects = pad_targets(targets, boxes.device)
        wanted = torch.zeros_like(logits)
        layer = torch.cat([torch.full_like(m.rows, i) for i, m in enumerate(matches)])
        rows, queries, found = (torch.cat(part) for part in zip(*matches, strict=True))
        wanted[layer, rows, queries, labels[rows, found]] = 1.0
        focal = focal_loss(logits, wanted, self.config.focal_alpha).sum(-1)  # [L, B, Q]
        if factor is not None:
            factor[layer, rows, queries] = 1.0
            focal = focal * factor
        focal = focal.sum((1, 2)) / count  # [L]
        paired = self._box_terms(boxes[layer, rows, queries], objects[rows, found])
        summed = {name: _sum_by(layer, value, len(matches)) / count for name, value in paired.items()}
        terms = {}
        for i, suffix in enumerate(suffixes):
            terms[f"loss_ce{suffix}"] = focal[i]
            terms |= {f"{name}{suffix}": value[i] for name, value in summed.items()}
        return terms

    @staticmethod
    def _box_terms(boxes: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """[M] per matched pair."""
        distance = (boxes - objects).abs()
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(objects))
        return {
            "loss_bbox": distance.sum(-1),
            "loss_giou": 1 - overlap,
            "loss_xy": distance[:, :2].sum(-1).detach(),
            "loss_hw": distance[:, 2:].sum(-1).detach(),
        }

    @staticmethod
    @torch.no_grad()
    def _log_terms(logits: Tensor, found: Matches, targets: list[dict]) -> dict[str, Tensor]:
        labels, _ = pad_targets(targets, logits.device)
        best = logits.argmax(-1)
        right = best[found.rows, found.queries] == labels[found.rows, found.objects]
        sizes = logits.new_tensor([float(len(target["labels"])) for target in targets])
        guessed = (best != logits.shape[-1] - 1).sum(1).float()  # as published; the last row is no background
        error = 100 - 100 * right.float().mean() if len(right) else logits.new_zeros(())
        return {"class_error": error, "cardinality_error": (guessed - sizes).abs().mean()}


def _sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """[size] sums of the values that share an index."""
    return values.new_zeros(size).index_add(0, index, values)


@torch.no_grad()
def counted(boxes: Tensor, targets: list[dict]) -> Tensor | None:
    """[L, B, Q] 0 for queries that lie by more than half in a region to be left alone, else 1; None without any.

    Args:
        boxes: [L, B, Q, 4] cxcywh.
    """
    if not any(len(target.get("ignore", ())) for target in targets):
        return None
    factor = boxes.new_ones(boxes.shape[:3])
    for row, target in enumerate(targets):
        regions = target.get("ignore")
        if regions is None or len(regions) == 0:
            continue
        own = cxcywh_to_xyxy(boxes[:, row])[:, :, None]  # [L, Q, 1, 4]
        other = cxcywh_to_xyxy(regions.to(boxes))
        low, high = torch.maximum(own[..., :2], other[..., :2]), torch.minimum(own[..., 2:], other[..., 2:])
        inside = (high - low).clamp(min=0).prod(-1) / area(own).clamp(min=1e-9)  # [L, Q, K]
        factor[:, row][(inside > 0.5).any(-1)] = 0.0
    return factor
