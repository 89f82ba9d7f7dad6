"""NegGrad+: descent on what is kept, ascent on what is forgotten, in one weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._unlearning import Unlearning


class NegGradPlus(Unlearning):
    """forget: beta L(keep) - (1 - beta) L(target).

    Source: Kurmanji et al., NeurIPS 2023, arXiv:2302.09880, section 5 (a baseline there), and its code. The paper tunes beta
    per data set and states no single value; 0.95 is this project's default.
    """

    @dataclass
    class Config(Unlearning.Config):
        keep_share: float = knob(0.95, "beta: share of the keep loss, 0..1", least=0, most=1)

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        loss = -(1 - self.config.keep_share) * step.log("target", target.loss)
        return loss if keep is None else loss + self.config.keep_share * step.log("keep", keep.loss)


METHOD = NegGradPlus
