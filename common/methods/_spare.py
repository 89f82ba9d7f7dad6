"""A backward pass without the items whose loss is beyond the bound: relu(bound - loss) gives them no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common import distributed, layers
from common.domain import Batch, Domain, Prediction, Read, mean_of
from common.frozen import draws

# Below this share of items within the bound, a second forward pass on them is cheaper than a backward pass on all.
WORTH = 0.5


def can_spare(model: nn.Module) -> bool:
    """Whether two forward passes of the model give the same, and no other rank has items that this one does not see."""
    return layers.fast is not None and not distributed.active() and not any(map(draws, model.modules()))


def within(prediction: Prediction, bound: float) -> Tensor | None:
    """[N] which items have a gradient, or None where the loss does not split into items."""
    return None if prediction.item_loss is None else prediction.item_loss.detach() < bound


def predict_spared(
    domain: Domain, model: nn.Module, target: Batch, keep: Batch, bound: float, read: Sequence[Read]
) -> list[Prediction]:
    """The predictions of both batches; target items beyond the bound have values and no gradient.

    A function of target items that is constant beyond the bound has the gradient that a whole backward pass gives it.

    read: see `Domain.predict_together`.
    """
    with torch.no_grad():
        (seen,) = domain.predict_together(model, [target], read[:1])
    near = within(seen, bound)
    part = None if near is None else domain.part_of(target, near)
    if near is None or (part is None and near.any()):  # not to be divided
        return domain.predict_together(model, [target, keep], read)
    if part is None:
        return [seen, *domain.predict_together(model, [keep], read[1:])]
    found, kept = domain.predict_together(model, [part, keep], read)
    assert seen.item_loss is not None and found.item_loss is not None
    losses = seen.item_loss.index_put((near,), found.item_loss)
    scores, embedding = (
        a.index_put((near,), b) for a, b in ((seen.scores, found.scores), (seen.embedding, found.embedding))
    )
    return [seen._replace(loss=mean_of(losses), scores=scores, embedding=embedding, item_loss=losses), kept]
