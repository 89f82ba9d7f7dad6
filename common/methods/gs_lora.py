"""GS-LoRA: replay plus group sparsity over the adapters of whole blocks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods.replay import Replay
from common.sparsity import GROUPINGS, group_penalty, groups, proximal_step

STARTED = 0.1  # share of the bound below which a class still counts as known


class GSLoRA(Replay):
    """The replay loss + alpha sum_g ||adapter group g||_F.

    Source: GS-LoRA, Zhao et al., CVPR 2024, arXiv:2403.11530, eq. 8-10; Knowledge Swapping, arXiv:2502.08075.
    Published alpha: 0.005 on images, 0.01 on detection and segmentation.

    A group lasso stronger than the target's gradient holds a fresh adapter at zero: a plan that only forgets may
    then never start on a saturated classifier, and a warning says so. `sparsity_from_epoch` above 0 starts it.
    """

    checked = "the authors' code"

    @dataclass
    class Config(Replay.Config):
        sparsity_weight: float = knob(0.005, "weight of the group lasso; alpha in the paper")
        sparsity_from_epoch: int = knob(0, "first epoch of a phase with the group lasso (warm-up)")
        grouping: str = knob("block", "what one group is", GROUPINGS)
        proximal: bool = knob(
            False, "shrink groups after each step instead of adding a penalty, so that they become exactly zero"
        )

    spares = True

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        loss = super().swap_loss(step, target, keep)
        if step.phase.action == "forget" and step.at.number + 1 == step.at.total:
            self._check_start(target.loss.item())
        if self.config.proximal or step.at.epoch < self.config.sparsity_from_epoch:
            return loss
        penalty = group_penalty(groups(self.model, self.config.grouping))
        return loss + self.config.sparsity_weight * step.log("sparsity", penalty)

    def _check_start(self, loss: float) -> None:
        """Warns where the last batch of a forget phase is hardly nearer to the bound than a known class is."""
        if self.config.sparsity_weight and loss < STARTED * self.config.bound:
            warnings.warn(
                f"the classes to forget end with a loss of {loss:.3f}, far below the bound of {self.config.bound:g}: "
                f"the group lasso may hold the adapter at zero; try --sparsity-from-epoch 1 or more, or a smaller "
                f"--sparsity-weight.",
                stacklevel=2,
            )

    def after_step(self, step: Step, lr: float) -> None:
        if self.config.proximal and step.at.epoch >= self.config.sparsity_from_epoch:
            proximal_step(groups(self.model, self.config.grouping), lr * self.config.sparsity_weight)


METHOD = GSLoRA
