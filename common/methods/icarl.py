"""iCaRL: binary cross-entropy with the old model's answers, a herded memory, nearest-mean classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.errors import UserError
from common.knobs import knob
from common.methods._base import Step
from common.methods._continual import Continual
from common.methods._head import linear_head, training_means
from common.methods._relabel import relabelled
from common.plan import Phase

UNKNOWN = -1e4  # the bias of a class that nothing is remembered of: below every cosine


class ICaRL(Continual):
    """learn, on target and keep items alike: mean over items of the sum over known classes of

    BCE(sigmoid(o_i), q_i), q_i = [i is the item's class] for new classes, sigmoid(o_i before) for old ones.
    forget: the target's q is a wrong label, the keep items' q is the old model's.

    Answers: the class whose mean exemplar direction is nearest (`classifier` "nearest_mean"). As z and the means
    are compared at length 1, that is a linear layer with the mean directions as rows and no bias; so the head is
    overwritten with them at the end of a phase and put back before the next one trains. Classes of which
    nothing is remembered (forgotten ones, and those that the plan leaves alone) are never answered then.
    `classifier` "head" answers with the trained head. Needs one linear classifier.

    Source: Rebuffi et al., CVPR 2017, arXiv:1611.07725, algorithms 1-5; the paper's memory holds 2000 in all
    (CIFAR-100), here 20 per class.
    """

    needs = "memory, teacher"
    teaches = True
    memorises = True
    saved: tuple[str, ...] = ("trained_head",)

    @dataclass
    class Config(Continual.Config):
        trains: str = knob("all", "what moves", ["all"])
        exemplars: int = knob(20, "items remembered; 0 also means 20", least=0)
        classifier: str = knob("nearest_mean", "who answers", ["nearest_mean", "head"])

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.head = linear_head(domain, model, "icarl")
        if config.classifier == "nearest_mean" and self.head.bias is None:
            raise UserError(
                "iCaRL's means as a classifier need a bias that silences unknown classes, and this model's head has "
                "none; use --classifier head."
            )
        self.trained_head: dict[str, Tensor] = {}

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        batches, students = [step.target], [target]
        if keep is not None:
            batches, students = [step.target, step.keep], [target, keep]
        terms = [self._term(step, s, t) for s, t in zip(students, self.taught(batches), strict=True)]
        return step.log("binary", torch.stack(terms).mean())

    def _term(self, step: Step, student: Prediction, teacher: Prediction) -> Tensor:
        table = self.domain.classes
        new, old = table.rows(step.phase.target), table.rows(step.phase.keep)
        wanted = teacher.scores.detach().float().sigmoid()
        if step.phase.action == "learn":
            wanted[:, new] = 0
            of_target = torch.isin(student.labels, torch.tensor(new, device=student.labels.device))
            wanted[of_target, student.labels[of_target]] = 1
        elif student.labels is not None and len(student.labels):
            gone = torch.isin(student.labels, torch.tensor(new, device=student.labels.device))
            wrong = relabelled(self.domain, step.phase, student.labels, self.config.published_relabel)
            wanted[gone] = F.one_hot(wrong[gone], wanted.shape[1]).to(wanted)
        rows = new + old
        loss = F.binary_cross_entropy_with_logits(student.scores[:, rows].float(), wanted[:, rows], reduction="sum")
        return loss / max(1, len(student.labels)) + 0.0 * student.scores.sum()

    # ---- who answers -------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        if self.trained_head:
            self.head.put(self.trained_head)
            self.trained_head = {}
        super().begin_phase(phase)

    def end_phase(self, phase: Phase) -> None:
        super().end_phase(phase)
        known = (*phase.keep, *(phase.target if phase.action == "learn" else ()))
        if self.config.classifier == "nearest_mean" and known:
            self.trained_head = self.head.state()
            self.answer_by_means(known)

    @torch.no_grad()
    def answer_by_means(self, classes: tuple[str, ...]) -> None:
        """Overwrites the head with the mean directions of the remembered items of `classes`."""
        assert self.memory is not None, "this method memorises"
        means = training_means(self, classes, normalize=True, items=self.memory.positions(classes))
        self.head.weight.zero_()
        assert self.head.bias is not None, "__init__ asks for one"
        self.head.bias.fill_(UNKNOWN)
        for row, mean in means.items():
            self.head.weight[row] = F.normalize(mean, dim=0).to(self.head.weight)
            self.head.bias[row] = 0


METHOD = ICaRL
