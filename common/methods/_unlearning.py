"""What the unlearning methods share: a plain learn phase, a forget phase of their own, a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.knobs import knob
from common.methods._base import Method, Step
from common.plan import Phase
from common.teacher import Teacher, restored


class Unlearning(Method):
    """learn:  L(target) + keep_weight L(keep)
    forget: `forget_loss`, which a subclass defines
    """

    trains = "all"
    saved = ("teacher",)
    teaches = False  # whether forget phases want `self.teacher`, the model as it was before the phase

    @dataclass
    class Config(Method.Config):
        trains: str = knob("all", "what moves", ["adapter", "backbone", "all"])
        keep_weight: float = knob(1.0, "weight of the keep loss")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.teacher: Teacher | None = None

    def begin_phase(self, phase: Phase) -> None:
        self.teacher = Teacher(self.model) if self.teaches and phase.action == "forget" else None

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        if step.phase.action == "forget":
            return self.forget_loss(step, target, keep)
        loss = step.log("target", target.loss)
        return loss if keep is None else loss + self.config.keep_weight * step.log("keep", keep.loss)

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        """The scalar that a forget phase minimises."""
        raise AssertionError("a subclass defines how to forget")

    def kept(self, step: Step, keep: Prediction | None) -> Tensor | float:
        """keep_weight L(keep), 0 where nothing is kept."""
        return 0.0 if keep is None else self.config.keep_weight * step.log("keep", keep.loss)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher = restored(self.model, state["teacher"])
