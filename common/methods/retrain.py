"""Retrain: a new start and training on the classes that are to be known; the reference for forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.errors import UserError
from common.knobs import knob
from common.methods._base import Method, Step
from common.plan import Phase


class Retrain(Method):
    """Every phase puts the model back to a start that is the same for all phases and trains all parameters on
    the classes that are to be known after it: keep, and the target of a learn phase. Forgotten classes are
    never shown. From a random start this is the model that never knew them; from the pretrained start it
    shows how much of a class survives training on others.

    Source: the "Retrain" row of GS-LoRA, arXiv:2403.11530, section 4.
    """

    trains = "all"
    guards = settles = False

    @dataclass
    class Config(Method.Config):
        start: str = knob("random", "weights that each phase starts from", ["random", "pretrained"])

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        source = model
        if config.start == "random":
            source = domain.build_model(pretrained=False)
        self.first = {name: value.detach().clone() for name, value in source.state_dict().items()}

    @torch.no_grad()
    def begin_phase(self, phase: Phase) -> None:
        state = self.model.state_dict()
        for name, value in self.first.items():
            state[name].copy_(value)

    def loss(self, step: Step) -> Tensor:
        batches = [step.target] if step.phase.action == "learn" else []
        batches += [] if step.keep is None else [step.keep]
        if not batches:
            raise UserError("retrain has no data: this forget phase keeps no class.")
        terms = [p.loss for p in self.domain.predict_together(self.model, batches)]
        return step.log("keep", torch.stack(terms).mean())

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        raise AssertionError("retrain chooses its own forward passes")


METHOD = Retrain
