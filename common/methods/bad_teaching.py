"""Bad teaching: a model that knows nothing teaches the forget set, the old model teaches the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.knobs import knob
from common.losses import soft_kl
from common.methods._base import Step
from common.methods._unlearning import Unlearning
from common.plan import Phase
from common.streams import derive


class BadTeaching(Unlearning):
    """forget: KL(p_incompetent(x_target) || p(x_target)) + keep_weight KL(p_before(x_keep) || p(x_keep)).

    The incompetent teacher is a network of the same kind with random weights, a second model in memory;
    `incompetent` "uniform" puts the uniform distribution in its place and needs none. Divergences are means
    over items (the published code's default reduction also divides by the number of classes).

    Source: Chundawat et al., AAAI 2023, arXiv:2205.08096, eq. 1-2; temperature 1.
    """

    needs = "keep, teacher, random second model"
    checked = "the authors' code"
    teaches = True

    @dataclass
    class Config(Unlearning.Config):
        incompetent: str = knob("random", "who teaches the forget set", ["random", "uniform"])
        temperature: float = knob(1.0, "softens all distributions")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self._incompetent: nn.Module | None = None

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        bad = self._bad_scores(step, target)
        loss = step.log("bad", _divergence(target.scores, bad, self.config.temperature))
        if keep is None:
            return loss
        (good,) = self.taught([step.keep])
        kept = step.log("good", _divergence(keep.scores, good.scores, self.config.temperature))
        return loss + self.config.keep_weight * kept

    @torch.no_grad()
    def _bad_scores(self, step: Step, target: Prediction) -> Tensor:
        if self.config.incompetent == "uniform":
            return torch.zeros_like(target.scores)
        if self._incompetent is None:  # from the seed alone: all ranks and a resumed run build the same one
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.train_config.seed, "incompetent"))
                fresh = self.domain.build_model(pretrained=False)
            self._incompetent = fresh.to(target.scores.device).eval().requires_grad_(False)
        return self.domain.predict(self._incompetent, step.target).scores

    def end_phase(self, phase: Phase) -> None:
        self._incompetent = None


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_kl(student, teacher, temperature) if student.numel() else student.sum()


METHOD = BadTeaching
