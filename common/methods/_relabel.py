"""Wrong labels for items to be forgotten, and cross-entropy on labels that are not the data's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.domain import Domain
from common.plan import Phase


def wrong_labels(labels: Tensor, rows: Sequence[int]) -> Tensor:
    """[N] a label for every item, uniform over `rows` without the item's own; drawn from torch's generator.

    Raises:
        ValueError: an item has no other label among the rows.
    """
    choice = torch.tensor(rows, device=labels.device)
    own = choice[None, :] == labels[:, None]  # [N, R]
    others = len(rows) - own.sum(1)
    if len(labels) and int(others.min()) < 1:
        raise ValueError("there is no other label to give an item.")
    pick = (torch.rand(len(labels), device=labels.device) * others).long()
    rank = (~own).long().cumsum(1) - 1  # position among the other rows
    return choice[((rank == pick[:, None]) & ~own).float().argmax(1)]


def published_labels(labels: Tensor, count: int) -> Tensor:
    """[N] labels as the published GS-LoRA baselines draw them: (y + u) mod n with u in 1..100, one more if that is y.

    `count` is the number of classes being forgotten, so that labels lie in 0..n-1 whatever the class order is,
    and with n = 1 every item gets label 0, be it the true one.
    """
    drawn = (labels + torch.randint(1, 101, labels.shape, device=labels.device)) % count
    return torch.where(drawn == labels, (drawn + 1) % count, drawn)


def relabelled(domain: Domain, phase: Phase, labels: Tensor, published: bool = False) -> Tensor:
    """Wrong labels for a forget phase: among the classes that are kept, or all others where none is."""
    if published:
        return published_labels(labels, len(phase.target))
    target = set(domain.classes.rows(phase.target))
    rows = domain.classes.rows(phase.keep) or [r for r in range(len(domain.classes)) if r not in target]
    return wrong_labels(labels, rows or range(len(domain.classes)))


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, 0 for a batch without annotated items. Scalar, in nats."""
    return F.cross_entropy(scores, labels, reduction="sum") / max(1, len(labels))
