"""The linear classifier of a model, and class means over training data, for methods that write head rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common import distributed
from common.domain import Domain
from common.errors import UserError
from common.methods._base import Method
from common.prototypes import Prototypes, class_means


class Head(NamedTuple):
    """weight [R, D] and bias [R] (or None) of the one layer that makes logits; row i is logit row i."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def state(self) -> dict[str, Tensor]:
        """Copies of both."""
        return {n: p.detach().clone() for n, p in zip(("weight", "bias"), self, strict=True) if p is not None}

    @torch.no_grad()
    def put(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def linear_head(domain: Domain, model: nn.Module, method: str) -> Head:
    """The classifier of `model`. Raises UserError where the logits come from more than one linear layer."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(parameters[n]): parameters[n] for n in domain.head_rows(model, domain.classes.names)}
    weights = [p for p in found.values() if p.dim() == 2]
    biases = [p for p in found.values() if p.dim() == 1]
    if len(weights) != 1 or len(biases) > 1:
        raise UserError(
            f"`--method {method}` writes the rows of one linear classifier; this model has {len(weights)} tables of "
            f"class weights. Choose another method."
        )
    return Head(weights[0], biases[0] if biases else None)


@torch.no_grad()
def training_means(
    method: Method, classes: Sequence[str], normalize: bool = False, items: tuple[int, ...] | None = None
) -> Prototypes:
    """Logit row -> mean embedding of the training items of `classes`, on every rank the same; model in eval mode.

    Args:
        normalize: bring every embedding to length 1 first.
        items: positions in the loader of these classes, instead of all.
    """
    model, training = method.model, method.model.training
    model.eval()
    pairs = []
    for batch in method.pass_over(classes, items=items):
        prediction = method.domain.predict(model, batch)
        pairs.append((prediction.embedding.float().cpu(), prediction.labels.cpu()))
    model.train(training)
    everything = [pair for part in distributed.gather(pairs) for pair in part]
    wanted = set(method.domain.classes.rows(classes))
    return {row: mean for row, mean in class_means(everything, normalize).items() if row in wanted}
