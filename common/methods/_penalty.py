"""Quadratic penalties on weights: importances, anchors, and how several of them become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common import distributed
from common.domain import Batch, Domain, Prediction
from common.errors import UserError
from common.knobs import knob
from common.lora import adapters
from common.methods._base import Method, Step
from common.methods._continual import Continual
from common.methods._snapshots import Weights, trained
from common.plan import Phase
from common.state import Saved


def check_not_stacked(model: nn.Module) -> None:
    """Raises UserError where adapters are stacked: a penalty would hold fresh factors where the frozen ones were."""
    if any(layer.past_A.shape[0] for layer in adapters(model).values()):
        raise UserError(
            "`--lora-between-phases stack` starts fresh adapters in every phase, which a penalty on weights cannot "
            "hold; use continue, or --trains backbone."
        )


def mean_over_batches(
    method: Method, batches: Iterable[Batch], loss: Callable[[Prediction], Tensor], of: Callable[[Tensor, int], Tensor]
) -> Weights:
    """Mean over all batches of all ranks of `of(gradient, items)`, in eval mode; the model is not changed.

    Args:
        loss: what is differentiated, given a batch's prediction.
        of: (gradient of a parameter, annotated items in the batch) -> what is averaged.
    """
    model, training = method.model, method.model.training
    model.eval()
    members = trained(model)
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in members.items()}
    count = torch.zeros((), device=next(iter(sums.values())).device)
    for batch in batches:
        prediction = method.domain.predict(model, batch)
        grads = torch.autograd.grad(loss(prediction), list(members.values()), allow_unused=True)
        for name, grad in zip(members, grads, strict=True):
            if grad is not None:
                sums[name] += of(grad.float(), len(prediction.labels))
        count += 1
    model.train(training)
    batches_in_all = distributed.total(count).clamp_min(1)
    return {name: distributed.total(value) / batches_in_all for name, value in sums.items()}


class Quadratic(Saved):
    """The sum of penalties w (theta - anchor)^2, kept as one: two quadratics add up to a third plus a constant.

    w1 (x - a)^2 + w2 (x - b)^2 = (w1 + w2) (x - m)^2 + w1 w2 / (w1 + w2) (a - b)^2 with m the weighted mean of
    a and b, so that any number of phases costs one set of weights and one of anchors.

    merge: False keeps the terms apart, so that one of them can be taken out again.
    """

    saved: tuple[str, ...] = ("terms",)

    def __init__(self, merge: bool = True) -> None:
        self.merge = merge
        self.terms: dict[str, dict[str, Any]] = {}

    def add(self, name: str, weight: Weights, anchor: Weights, decay: float = 1.0) -> None:
        """Adds a term; what was there before counts `decay` times."""
        new = {"weight": dict(weight), "anchor": dict(anchor), "rest": torch.zeros(())}
        if not self.merge or not self.terms:
            self.terms[name if not self.merge else "all"] = new
            return
        old = self.terms["all"]
        rest = decay * old["rest"]
        for key, w in weight.items():
            w0, a0 = decay * old["weight"][key], old["anchor"][key]
            total = w0 + w
            share = torch.where(total > 0, w / total.clamp_min(torch.finfo(w.dtype).tiny), torch.zeros_like(w))
            rest = rest + (w0 * share * (anchor[key] - a0).square()).sum().cpu()
            old["anchor"][key] = a0 + share * (anchor[key] - a0)
            old["weight"][key] = total
        old["rest"] = rest

    @torch.no_grad()
    def shift(self, name: str, start: Weights, end: Weights) -> None:
        """Takes an update out of the anchors of the terms that were added after this one, where terms are apart."""
        names = list(self.terms)
        for later in names[names.index(name) + 1 :] if name in names else []:
            anchor = self.terms[later]["anchor"]
            self.terms[later]["anchor"] = {
                key: value - (end[key] - start[key]) if key in end else value for key, value in anchor.items()
            }

    def drop(self, name: str) -> None:
        """Takes a term out, where terms are kept apart."""
        self.terms.pop(name, None)

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty at the present weights. Scalar; 0 without terms."""
        members = trained(model)
        device = next(iter(members.values())).device
        total = torch.zeros((), device=device)
        for term in self.terms.values():
            for key, w in term["weight"].items():
                total = total + (w * (members[key].float() - term["anchor"][key]).square()).sum()
            total = total + term["rest"].to(device)
        return total


class Penalised(Continual):
    """Continual + penalty_weight times a quadratic penalty on the weights, which a subclass fills."""

    saved: tuple[str, ...] = ("penalty",)
    merge_terms = True

    @dataclass
    class Config(Continual.Config):
        penalty_weight: float = knob(1.0, "weight of the penalty; lambda in the paper")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.penalty = Quadratic(self.merge_terms)

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        check_not_stacked(self.model)

    def retention(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor | None:
        if not self.penalty.terms:
            return None
        return self.config.penalty_weight * step.log("penalty", self.penalty(self.model))
