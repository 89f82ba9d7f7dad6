"""MAS: a quadratic penalty on the change of weights, scaled by how much they move the outputs."""

from __future__ import annotations

from dataclasses import dataclass

from common.knobs import knob
from common.methods._importance import Importance
from common.methods._penalty import mean_over_batches
from common.methods._snapshots import Weights


class MAS(Importance):
    """Omega_n = mean over batches of | d mean(o^2) / d theta_n |, o being all logits of the batch; no labels.

    Source: Aljundi et al., ECCV 2018, arXiv:1711.09601, eq. 2-3; as a baseline of GS-LoRA, arXiv:2501.09705.
    Published lambda: 5 (one forget phase), 0.005 (four, faces), 0.002 (four, ImageNet100); lr 1e-4.
    """

    needs = "keep (learning works without), gradients"
    checked = "the code of GS-LoRA, where it is a baseline"

    @dataclass
    class Config(Importance.Config):
        penalty_weight: float = knob(5.0, "weight of the penalty; lambda in the paper")

    def importance(self, classes: tuple[str, ...]) -> Weights:
        batches = self.pass_over(classes, items=self.sample(classes))
        return mean_over_batches(self, batches, lambda p: p.scores.square().mean(), lambda grad, _: grad.abs())


METHOD = MAS
