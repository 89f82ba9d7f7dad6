"""Amnesiac by batches: the updates of batches that hold sensitive classes are recorded and subtracted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common import distributed
from common.domain import Domain, Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._snapshots import Weights, copied, trained
from common.methods._unlearning import Unlearning
from common.plan import Phase
from common.splits import resolve


class AmnesiacBatch(Unlearning):
    """learn: L(target) + keep_weight L(keep); for every sensitive class the sum of the updates of those steps
    whose target batch holds an item of it is recorded (parameters only).
    forget: theta <- theta - the recorded sum, then L(keep) for the phase's steps (repair).

    A step that holds two classes of one forget phase is subtracted once. Without `--sensitive` every class of a
    learn phase counts; then all its steps hold some, and the phase as a whole is subtracted. Memory: one copy
    of what trains per set of classes that occur together in some step.

    Source: Graves et al., AAAI 2021, arXiv:2010.10981, section 4.2.
    """

    needs = "keep (repair), recorded updates"
    saved: tuple[str, ...] = ("sums",)
    guards = False

    @dataclass
    class Config(Unlearning.Config):
        sensitive: str = knob("", "classes whose batches are recorded: names, or @file; empty records all")
        repair: bool = knob(True, "train on the keep set after subtracting")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        names = resolve(config.sensitive, domain.classes.names, "--sensitive")
        self.sensitive = set(domain.classes.rows(names or domain.classes.names))
        self.sums: dict[str, Weights] = {}  # "rows that a step held, comma separated" -> summed updates
        self.before: Weights = {}
        self.held: set[int] = set()

    def steps(self, phase: Phase, planned: int) -> int:
        trains = phase.action == "learn" or (self.config.repair and phase.keep)
        return planned if trains else 0

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if phase.action == "forget":
            self.subtract(set(self.domain.classes.rows(phase.target)))

    @torch.no_grad()
    def subtract(self, rows: set[int]) -> None:
        """Takes out every step that held one of these rows."""
        members = trained(self.model)
        for key in [k for k in self.sums if rows & set(map(int, k.split(",")))]:
            for name, update in self.sums.pop(key).items():
                members[name].copy_((members[name].double() - update).to(members[name].dtype))

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "learn":
            return super().loss(step)
        return step.log("keep", self.domain.predict(self.model, step.keep).loss)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        self.held |= set(target.labels.tolist()) & self.sensitive
        return super().swap_loss(step, target, keep)

    def before_step(self, step: Step) -> None:
        self.held = {row for rows in distributed.gather(sorted(self.held)) for row in rows}
        self.before = copied(self.model) if self.held and step.phase.action == "learn" else {}

    @torch.no_grad()
    def after_step(self, step: Step, lr: float) -> None:
        if self.before:
            key = ",".join(map(str, sorted(self.held)))
            own = self.sums.setdefault(
                key, {n: torch.zeros_like(v, dtype=torch.float64) for n, v in self.before.items()}
            )
            for name, p in trained(self.model).items():
                own[name] += p.double() - self.before[name].double()
        self.held, self.before = set(), {}


METHOD = AmnesiacBatch
