"""Mask replay: forgotten items are answered as before, without the forgotten classes; kept items are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.losses import masked_kl
from common.methods._base import Step, Taught
from common.methods.replay import Replay
from common.plan import Phase
from common.teacher import Teacher


class MaskReplay(Replay, Taught):
    """learn:  learn_weight L(target) + keep_weight L(keep)
    forget: L(keep) + mask_weight KL(softmax((o_before + mask) / mask_temperature) || softmax(o)) on target items,
            mask = -inf on the logits of classes that are forgotten or not learned yet

    The forgotten items get the answers that are left when their class is taken out, so they are neither pushed away
    without bound nor given to one other class. Where classes do not exclude one another (`Domain.exclusive`), there
    is no such answer; there a forget phase is that of `replay`: L(keep) + forget_weight relu(bound - L(target)).

    Source: the target is that of DELETE, Zhou et al., CVPR 2025, arXiv:2503.23751, eq. 7-9, whose temperature is 1
    and which trains all parameters on the forget set alone. Adapters and the keep loss are of Knowledge Swapping,
    arXiv:2502.08075. A teacher without a class is less sure than a model that never saw it; a temperature below 1
    makes up for that.
    """

    @dataclass
    class Config(Replay.Config):
        mask_weight: float = knob(
            4.0, "weight of the distance to the old answers without the forgotten classes", least=0
        )
        mask_temperature: float = knob(0.3, "below 1 makes these answers surer than the old model's", above=0)

    spares = True

    def _spares(self, step: Step) -> bool:
        return self.teacher is None and super()._spares(step)

    def begin_phase(self, phase: Phase) -> None:
        self.teacher = Teacher(self.model) if phase.action == "forget" and self.domain.exclusive else None

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        if self.teacher is None:
            return super().swap_loss(step, target, keep)
        kept = 0.0 if keep is None else step.log("keep", keep.loss)
        step.log("target", target.loss)
        (before,) = self.taught([step.target])
        hidden = self.domain.classes.rows([*step.phase.target, *step.phase.gone, *step.phase.unknown])
        masked = masked_kl(target.scores, before.scores, hidden, self.config.mask_temperature)
        return kept + self.config.mask_weight * step.log("masked", masked)


METHOD = MaskReplay
