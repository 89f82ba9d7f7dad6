"""EWC: a quadratic penalty on the change of weights, scaled by the Fisher information of old data."""

from __future__ import annotations

from dataclasses import dataclass

from common.knobs import knob
from common.methods._importance import Importance
from common.methods._penalty import mean_over_batches
from common.methods._snapshots import Weights


class EWC(Importance):
    """Omega_n = mean over batches b of |b| (d L_b / d theta_n)^2, the diagonal of the Fisher matrix.

    L_b is the mean loss of a batch with true labels. With a batch size of 1 this is the empirical Fisher
    itself; with larger ones (published) an estimate of it, as the mean gradient is near zero at the optimum.

    Source: Kirkpatrick et al., PNAS 2017, arXiv:1612.00796, eq. 3; as a baseline of GS-LoRA, arXiv:2501.09705.
    Published lambda: 10 on faces, 3 on ImageNet100 (without the paper's factor 1/2); lr 1e-4.
    """

    needs = "keep (learning works without), Fisher"
    checked = "the code of GS-LoRA, where it is a baseline"

    @dataclass
    class Config(Importance.Config):
        penalty_weight: float = knob(10.0, "weight of the penalty; lambda in the paper")
        fisher_batch: int = knob(0, "items per gradient of the Fisher estimate; 0 takes the batch size, 1 is exact")

    def importance(self, classes: tuple[str, ...]) -> Weights:
        batches = self.pass_over(classes, self.config.fisher_batch, self.sample(classes))
        return mean_over_batches(self, batches, lambda p: p.loss, lambda grad, items: grad.square() * items)


METHOD = EWC
