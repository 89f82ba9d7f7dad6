"""SCRUB: away from the old model on the forget set, close to it on the rest, in alternation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.averaging import MovingAverage
from common.domain import Domain
from common.knobs import knob
from common.losses import soft_kl
from common.methods._base import Step
from common.methods._snapshots import trained
from common.methods._unlearning import Unlearning
from common.plan import Phase


class SCRUB(Unlearning):
    """forget, in turns:
    max step: -KD(target) + S
    min step: ce_weight L(keep) + distil_weight KD(keep) + S

    KD(x) = T^2 KL(softmax(o_before / T) || softmax(o / T)); S = smoothing sum_n ||theta_n - mean theta_n||_F, the
    mean being a running average that starts as the model before the phase and is renewed once per round (0.9 old + 0.1
    new); smoothing is 0 here and 0.1 in scrub_s.

    A phase holds `rounds` rounds; in the first `max_share` of each, every epoch starts with one pass of max
    steps over the forget set (at most half the epoch), the rest are min steps, so that the model recovers.

    Source: Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, eq. 3 and algorithm 1. Constants as in GS-LoRA's
    baseline (arXiv:2501.09705): T = 2, gamma = 0.99, alpha = 0.001, 10 rounds of 10 epochs, max steps in the
    first 5; published lr 1e-4, divided by 10 from round 8 on, replaced here by the loop's cosine.
    """

    needs = "keep, teacher"
    checked = "the authors' code"
    teaches = True
    settles = False  # a round ends at a step that is set when the phase begins
    saved: tuple[str, ...] = ("average",)

    @dataclass
    class Config(Unlearning.Config):
        ce_weight: float = knob(0.99, "weight of the keep loss; gamma")
        distil_weight: float = knob(0.001, "weight of the distillation; alpha")
        temperature: float = knob(2.0, "softens both distributions")
        rounds: int = knob(1, "rounds per phase (published: 10, of 10 epochs each)", least=1)
        max_share: float = knob(0.5, "part of each round that has max steps, 0..1", least=0, most=1)
        smoothing: float = knob(0.0, "pull to the averaged weights; above 0 in SCRUB-S")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.average = MovingAverage(trained(model).values(), 0.9)

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        self.average.values = []
        if phase.action == "forget" and self.config.smoothing:
            self.average.update()

    def is_max(self, step: Step) -> bool:
        """Whether this step drives the model away on the forget set."""
        if step.keep is None:
            return True
        at = step.at
        inside = at.number / at.total * self.config.rounds % 1
        items = self.domain.size(step.phase.target, train=True) * at.per_epoch
        passes = math.ceil(min(items / max(1, self.epoch_items(step.phase)), at.per_epoch / 2))
        return inside < self.config.max_share and at.number % at.per_epoch < passes

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "learn":
            return super().loss(step)
        c = self.config
        if self.is_max(step):
            target = self.domain.predict(self.model, step.target)
            return -step.log("away", self._distil(step.target, target.scores)) + self._pull(step)
        keep = self.domain.predict(self.model, step.keep)
        near = step.log("near", self._distil(step.keep, keep.scores))
        return c.ce_weight * step.log("keep", keep.loss) + c.distil_weight * near + self._pull(step)

    def _distil(self, batch: Any, scores: Tensor) -> Tensor:
        (teacher,) = self.taught([batch])
        return soft_kl(scores, teacher.scores, self.config.temperature) if scores.numel() else scores.sum()

    def _pull(self, step: Step) -> Tensor | float:
        if not (self.config.smoothing and self.average.values):
            return 0.0
        distances = [(p - mean).norm() for p, mean in zip(self.average.parameters, self.average.values, strict=True)]
        return self.config.smoothing * step.log("pull", torch.stack(distances).sum())

    def after_step(self, step: Step, lr: float) -> None:
        if step.phase.action == "learn" or not self.config.smoothing:
            return
        length = step.at.total / self.config.rounds
        if int((step.at.number + 1) / length) > int(step.at.number / length):
            self.average.update()


METHOD = SCRUB
