"""Gradient ascent: the loss of the forget set is driven up, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.knobs import knob
from common.losses import bounded_forgetting
from common.methods._base import Step
from common.methods._unlearning import Unlearning


class GradientAscent(Unlearning):
    """forget: -L(target), or relu(ascent_bound - L(target)) with a bound.

    Unbounded as published, it destroys the model if it runs for long; a few epochs at a small rate are meant
    (published: 5 epochs on detection).

    Source: Golatkar et al., CVPR 2020, arXiv:1911.04933, section 5 ("negative gradient"); the gradient ascent
    baseline of GS-LoRA's detection experiments.
    """

    needs = "nothing but the forget set"

    @dataclass
    class Config(Unlearning.Config):
        ascent_bound: float = knob(0.0, "loss (nats) at which the ascent stops; 0 never")

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "learn":
            return super().loss(step)
        target = self.domain.predict(self.model, step.target)
        step.log("target", target.loss)
        if self.config.ascent_bound:
            return bounded_forgetting(target, self.config.ascent_bound)
        return -target.loss


METHOD = GradientAscent
