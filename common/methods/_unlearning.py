"""What the unlearning methods share: a plain learn phase, a forget phase of their own, a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Method, Step, Taught
from common.plan import Phase
from common.teacher import Teacher


class Unlearning(Taught):
    """learn:  L(target) + keep_weight L(keep)
    forget: `forget_loss`, which a subclass defines
    """

    trains = "all"

    @dataclass
    class Config(Method.Config):
        trains: str = knob("all", "what moves", ["adapter", "backbone", "all"])
        keep_weight: float = knob(1.0, "weight of the keep loss")

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
