"""Deformable DETR's loss: the shared criterion without denoising, and proposals that know no classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ks_detection.models.parts.criterion import SetCriterion
from ks_detection.models.parts.matcher import Matches


class DeformableCriterion(SetCriterion):
    """Focal, L1 and generalised IoU on the final and auxiliary outputs; `_enc` are the terms of a two-stage
    model's proposals, for which every object is of one class.

    Source: Deformable DETR, arXiv:2010.04159; the published weights 2, 5, 2 in matching and in the loss.
    """

    def _terms(self, outputs: dict, targets: list[dict]) -> tuple[dict[str, Tensor], Matches]:
        terms, matches = super()._terms(outputs, targets)
        proposals = outputs.get("enc_outputs")
        if proposals is not None:
            blind = [target | {"labels": torch.zeros_like(target["labels"])} for target in targets]
            found, _ = super()._terms(proposals | {"aux_outputs": []}, blind)
            terms |= {f"{name}_enc": value for name, value in found.items()}
        return terms, matches

    def classification(self, terms: dict[str, Tensor]) -> Tensor:
        return super().classification({name: term for name, term in terms.items() if not name.endswith("_enc")})
