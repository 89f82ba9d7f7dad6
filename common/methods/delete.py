"""DELETE: the old model's answers without the forgotten classes are distilled, on the forget set alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.losses import soft_kl
from common.methods._base import Step
from common.methods._unlearning import Unlearning


class Delete(Unlearning):
    """forget: KL(softmax(o_before + mask) || softmax(o)) on target items, mask = -inf on forgotten logits.

    Needs no kept data: the target is the old model's answer without the forgotten classes.
    `masked` "forgotten" hides every class being forgotten, so that none takes over another's items; "true"
    hides each item's own class only.

    Source: Zhou et al., CVPR 2025, arXiv:2503.23751, eq. 7-9. Published: SGD without weight decay, 20 epochs,
    lr 5e-5 (CIFAR-100, ResNet-18).
    """

    needs = "teacher; no keep data"
    checked = "the authors' code"
    teaches = True

    @dataclass
    class Config(Unlearning.Config):
        masked: str = knob("forgotten", "logits that the teacher loses", ["forgotten", "true"])

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "forget":
            step.keep = None
        return super().loss(step)

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        (teacher,) = self.taught([step.target])
        if not target.scores.numel():
            return target.scores.sum()
        wanted = self.masked_scores(step, teacher.scores.float(), target.labels)
        return step.log("distil", soft_kl(target.scores, wanted))

    def masked_scores(self, step: Step, scores: Tensor, labels: Tensor) -> Tensor:
        """The teacher's [N, C] scores with -1e10 where it must not answer."""
        hidden = torch.zeros_like(scores, dtype=torch.bool)
        hidden[:, self.domain.classes.rows(step.phase.target)] = True
        if self.config.masked == "true":
            own = torch.zeros_like(hidden)
            own[torch.arange(len(labels)), labels] = True
            hidden = own
        return scores.masked_fill(hidden, -1e10)


METHOD = Delete
