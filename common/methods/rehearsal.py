"""Rehearsal: training on the kept classes only."""

from __future__ import annotations

from torch import Tensor

from common.errors import UserError
from common.methods._base import Step
from common.methods._unlearning import Unlearning


class Rehearsal(Unlearning):
    """forget: L(keep). The forget set is never shown.

    Source: the rehearsal baseline of GS-LoRA's detection experiments (arXiv:2501.09705); "fine-tuning" in
    the unlearning literature (SalUn, arXiv:2310.12508).
    """

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "learn":
            return super().loss(step)
        if step.keep is None:
            raise UserError("rehearsal has no data: this forget phase keeps no class.")
        return step.log("keep", self.domain.predict(self.model, step.keep).loss)


METHOD = Rehearsal
