"""Continual learning by importance: a quadratic penalty on the change of important weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.knobs import knob
from common.methods._penalty import Penalised
from common.methods._snapshots import Weights, copied
from common.plan import Phase
from common.streams import derive


class Importance(Penalised):
    """Continual + penalty_weight sum_terms sum_n Omega_n (theta_n - theta*_n)^2.

    A subclass measures Omega with `importance(classes)`. With `importance_from` "keep" a term is added before
    every phase, measured on what the phase must keep; with "target" after every learn phase, measured on what
    it learned, which needs no old data. As published for GS-LoRA's baselines the terms of all phases add up;
    ours are measured on the same share of the data that the run trains on (published: on all of it).
    """

    @dataclass
    class Config(Penalised.Config):
        importance_from: str = knob(
            "keep", "data that importances are measured on: what a phase keeps, or what it learned", ["keep", "target"]
        )
        online: bool = knob(False, "one anchor, the newest, for the importances of all phases")
        importance_items: int = knob(
            0, "measure importances on so many of these items, drawn at random; 0 on all", least=0
        )

    def importance(self, classes: tuple[str, ...]) -> Weights:
        """Omega per parameter, not negative, the same on every rank."""
        raise AssertionError("a subclass measures importances")

    def sample(self, classes: tuple[str, ...]) -> tuple[int, ...] | None:
        """Positions of the items to measure on, in order, or None for all; importances are means, so their scale stays."""
        count, size = self.config.importance_items, self.domain.size(classes, train=True)
        if not 0 < count < size:
            return None
        generator = torch.Generator().manual_seed(derive(self.train_config.seed, "importance", *classes))
        return tuple(torch.randperm(size, generator=generator)[:count].sort().values.tolist())

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if self.config.importance_from == "keep" and phase.keep:
            self.remember(f"before {phase.index}", phase.keep)

    def end_phase(self, phase: Phase) -> None:
        super().end_phase(phase)
        if self.config.importance_from == "target" and phase.action == "learn":
            self.remember("+".join(phase.groups), phase.target)

    def remember(self, name: str, classes: tuple[str, ...]) -> None:
        """Adds the term of `classes` at the present weights."""
        anchor = copied(self.model)
        if self.config.online and "all" in self.penalty.terms:
            self.penalty.terms["all"]["anchor"] = {k: v.clone() for k, v in anchor.items()}
        self.penalty.add(name, self.importance(classes), anchor)
