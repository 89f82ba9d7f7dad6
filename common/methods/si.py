"""SI: a quadratic penalty on the change of weights, scaled by how much they lowered the loss while learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.domain import Domain
from common.knobs import knob
from common.methods._base import Step
from common.methods._penalty import Penalised
from common.methods._snapshots import Weights, copied, trained
from common.plan import Phase


class SI(Penalised):
    """Continual + c sum_n Omega_n (theta_n - theta*_n)^2, with

    w_n = - sum over steps of g_n (theta_n(t+1) - theta_n(t)), g the gradient of the loss without the penalty,
    Omega_n += max(0, w_n) / ((theta_n - theta_n(start of phase))^2 + xi) at the end of a phase.

    Nothing is held in the first phase: the pretraining left no path to integrate.

    Source: Zenke et al., ICML 2017, arXiv:1703.04200, eq. 3-5. The authors' code has xi = 0.1 for permuted MNIST and
    0.001 for CIFAR, with c of 0.01 to 0.1 there; c = 0.1 and xi = 0.1 are the defaults here.
    """

    needs = "keep (learning works without)"
    saved: tuple[str, ...] = ("start", "path")

    @dataclass
    class Config(Penalised.Config):
        penalty_weight: float = knob(0.1, "weight of the penalty; c in the paper")
        damping: float = knob(0.1, "keeps importances finite; xi in the paper")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.start: Weights = {}
        self.path: Weights = {}
        self.before: Weights = {}
        self.grads: Weights = {}

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        self.start = copied(self.model)
        self.path = {name: torch.zeros_like(value) for name, value in self.start.items()}

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Notes weights and gradients; the penalty's own gradient, 2 c Omega (theta - theta*), is taken out."""
        self.before = copied(self.model)
        self.grads = {}
        for name, p in trained(self.model).items():
            if p.grad is None:
                continue
            grad = p.grad.float().clone()
            for term in self.penalty.terms.values():
                pull = term["weight"][name] * (p - term["anchor"][name])
                grad -= 2 * self.config.penalty_weight * pull
            self.grads[name] = grad

    @torch.no_grad()
    def after_step(self, step: Step, lr: float) -> None:
        members = trained(self.model)
        for name, grad in self.grads.items():
            self.path[name] -= grad * (members[name] - self.before[name])
        self.before, self.grads = {}, {}

    def end_phase(self, phase: Phase) -> None:
        super().end_phase(phase)
        now = copied(self.model)
        omega = {
            name: path.clamp_min(0) / ((now[name] - self.start[name]).square() + self.config.damping)
            for name, path in self.path.items()
        }
        if self.penalty.terms:  # one anchor, the newest, as in the paper
            self.penalty.terms["all"]["anchor"] = {name: value.clone() for name, value in now.items()}
        self.penalty.add(phase.title, omega, now)
        self.start, self.path = {}, {}


METHOD = SI
