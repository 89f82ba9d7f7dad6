"""SalUn: random relabelling of those weights only that the forget set depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._penalty import mean_over_batches
from common.methods._relabel import cross_entropy
from common.methods._snapshots import Weights, copied, trained
from common.methods.relabel import Relabel
from common.plan import Phase


class SalUn(Relabel):
    """forget: CE(target with wrong labels) + keep_weight L(keep), on m * theta + (1 - m) * theta_before with

    m = 1 for the `saliency` share of weights with the largest | d L(forget set) / d theta |.

    The other weights do not move, bit for bit: neither by the gradient nor by weight decay or momentum (the
    published code let those two through until 2026, as its users found).

    Source: Fan et al., ICLR 2024, arXiv:2310.12508, eq. 3-5. Published: the top half of all weights.
    """

    needs = "keep, gradient of the forget set"
    checked = "the authors' code"
    saved: tuple[str, ...] = ("mask", "anchor")

    @dataclass
    class Config(Relabel.Config):
        saliency: float = knob(0.5, "share of the weights that move, above 0, up to 1", above=0, most=1)
        published_any_label: bool = knob(False, "a wrong label may be the true one, as published")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.mask: Weights = {}
        self.anchor: Weights = {}

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        self.mask, self.anchor = {}, {}
        if phase.action == "learn":
            return
        batches = self.pass_over(phase.target)
        slopes = mean_over_batches(self, batches, lambda p: p.loss, lambda grad, _: grad)
        self.mask, self.anchor = largest(slopes, self.config.saliency), copied(self.model)

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        if not self.config.published_any_label:
            return super().forget_loss(step, target, keep)
        labels = torch.randint(target.scores.shape[1], target.labels.shape, device=target.labels.device)
        return step.log("relabelled", cross_entropy(target.scores, labels)) + self.kept(step, keep)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        for name, p in trained(self.model).items():
            if name in self.mask and p.grad is not None:
                p.grad.mul_(self.mask[name])

    @torch.no_grad()
    def after_step(self, step: Step, lr: float) -> None:
        for name, p in trained(self.model).items():
            if name in self.mask:
                p.copy_(torch.where(self.mask[name], p, self.anchor[name]))


def largest(values: Weights, share: float) -> Weights:
    """Masks that are True for that share of all entries, those of largest magnitude over all tensors."""
    flat = torch.cat([v.abs().flatten() for v in values.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(max(1, round(share * len(flat)))).indices] = True
    pieces = mask.split([v.numel() for v in values.values()])
    return {name: piece.view(v.shape).clone() for (name, v), piece in zip(values.items(), pieces, strict=True)}


METHOD = SalUn
