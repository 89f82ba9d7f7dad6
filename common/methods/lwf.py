"""LwF: the old model's answers are distilled while new data are learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.losses import soft_kl
from common.methods._base import Step
from common.methods._continual import Continual, old_rows
from common.plan import Phase


class LwF(Continual):
    """Continual + distil_weight KL(softmax(o_teacher / T) || softmax(o / T)), o being logits.

    In a learn phase over the old rows, on the target batch (no old data needed, as in the paper) and on the
    keep batch where there is rehearsal; in a forget phase over all rows, on the keep batch. KL differs from
    the paper's cross-entropy by the teacher's entropy, which has no gradient; there is no factor T^2.

    Source: Li and Hoiem, ECCV 2016, arXiv:1606.09282, eq. 2-4; as a baseline of GS-LoRA, arXiv:2501.09705:
    T = 2, lambda_kd = 0.5, rehearsal weight 2 to 10. `published_no_distillation` leaves the distillation out,
    which is what the code published with GS-LoRA does (log of a log-softmax is NaN, and NaN is replaced by 0).
    """

    needs = "keep (learning works without), teacher"
    checked = "the code of GS-LoRA, where it is a baseline"
    teaches = True

    @dataclass
    class Config(Continual.Config):
        distil_weight: float = knob(0.5, "weight of the distillation; lambda_kd")
        published_epochs: bool = knob(False, "an epoch passes over the classes that a phase trains, as published")
        temperature: float = knob(2.0, "softens both distributions")
        published_no_distillation: bool = knob(
            False, "leave the distillation term out, as the published baseline does in effect"
        )

    def reads_keep(self, phase: Phase) -> bool:
        return self.config.rehearse or phase.action == "forget"

    def retention(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor | None:
        pairs = [(keep, step.keep)] if keep is not None else []
        if step.phase.action == "learn":
            pairs.append((target, step.target))
        if self.config.published_no_distillation or not pairs:
            return None
        taught = self.taught([batch for _, batch in pairs])
        terms = [self._distil(step, student, t) for (student, _), t in zip(pairs, taught, strict=True)]
        return self.config.distil_weight * step.log("distil", torch.stack(terms).mean())

    def _distil(self, step: Step, student: Prediction, teacher: Prediction) -> Tensor:
        a, b = student.scores, teacher.scores
        if step.phase.action == "learn":
            rows = old_rows(self.domain, step.phase, a)
            a, b = a[:, rows], b[:, rows]
        if not a.numel():
            return a.sum()
        return soft_kl(a, b, self.config.temperature) / self.config.temperature**2


METHOD = LwF
