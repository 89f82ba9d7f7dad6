"""SSD: weights that matter to the forget set far more than to all data are shrunk; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._penalty import mean_over_batches
from common.methods._snapshots import Weights, trained
from common.methods._unlearning import Unlearning
from common.plan import Phase


class SSD(Unlearning):
    """forget, in one go and without training: theta_n <- beta_n theta_n where D_f,n > alpha D_n, with

    beta_n = min(lambda D_n / D_f,n, 1); D and D_f are the mean squared gradients (diagonal Fisher matrices) of
    all data (kept and forgotten) and of the forget set. D = (N_k D_k + N_f D_f) / (N_k + N_f) with the sizes that the
    two sets have before a share of them is drawn, so that no share moves the threshold.

    Acts on the weights themselves, so that adapters on a frozen model are no choice here.

    Source: Foster et al., AAAI 2024, arXiv:2308.07707, eq. 4-5 and algorithm 1. The authors' code for whole classes:
    alpha = 10 and lambda = 1 for ResNet18, alpha = 5 for a ViT, alpha = 50 and lambda = 0.1 for faces (Pins).
    """

    needs = "keep, Fisher"
    checked = "the authors' code"

    @dataclass
    class Config(Unlearning.Config):
        trains: str = knob("all", "which weights may be shrunk", ["backbone", "all"])
        selection: float = knob(10.0, "how much more a weight must matter; alpha", above=0)
        dampening: float = knob(1.0, "how far it is left standing; lambda", least=0)
        fisher_batch: int = knob(0, "items per gradient of the importances; 0 takes the batch size")

    def steps(self, phase: Phase, planned: int) -> int:
        return 0 if phase.action == "forget" else planned

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if phase.action == "learn":
            return
        forget = self._importance(phase.target)
        everything = self._of_all(phase, forget)
        with torch.no_grad():
            for name, p in trained(self.model).items():
                d, d_f = everything[name], forget[name]
                beta = (self.config.dampening * d / d_f.clamp_min(torch.finfo(d_f.dtype).tiny)).clamp_max(1)
                p.mul_(torch.where(d_f > self.config.selection * d, beta, torch.ones_like(beta)).to(p.dtype))

    def _of_all(self, phase: Phase, forget: Weights) -> Weights:
        """D, from the importances of the forget set and those of the keep set."""
        if not phase.keep:
            return forget
        kept, sizes = self._importance(phase.keep), [self.domain.whole_size(c) for c in (phase.keep, phase.target)]
        share = sizes[1] / max(1, sum(sizes))
        return {name: torch.lerp(value, forget[name], share) for name, value in kept.items()}

    def _importance(self, classes: tuple[str, ...]) -> Weights:
        batches = self.pass_over(classes, self.config.fisher_batch)
        return mean_over_batches(self, batches, lambda p: p.loss, lambda grad, _: grad.square())

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        raise AssertionError("nothing is trained in a forget phase")


METHOD = SSD
