"""Recovery radius: the smallest change of the input that brings a forgotten answer back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.domain import Batch, Domain

LARGEST, STEPS, RESTARTS, BISECTIONS = 8 / 255, 20, 2, 6


def radii(
    domain: Domain, model: nn.Module, batch: Batch, deviation: Sequence[float], leave: bool = False, seed: int = 0
) -> Tensor:  # fmt: skip
    """[N] smallest L-inf perturbation, in shares of the pixel range, after which the model names the true class.

    0 where it does so anyway; infinite where 8/255 is not enough. Small on forgotten and large on never-seen classes:
    the knowledge lies just below the surface. With `leave`, after which it no longer names the true class: how fragile
    the answers about retained images are, without which a small radius says nothing.

    Args:
        batch: has a field `images`, [N, C, H, W] normalised, one item per image.
        deviation: of each channel, by which pixels (0..1) were divided.

    Constants: projected gradient descent, 20 steps of 2.5 eps / 20, 2 restarts, 6 bisections of 0..8/255.

    Source: Madry et al., 2018, arXiv:1706.06083 for the search.
    """
    search = _Search(domain, model, torch.tensor(deviation).view(-1, 1, 1).to(batch.images), leave, seed)
    low = torch.zeros(len(batch.images), device=batch.images.device)
    at_once = search.within(batch, low, torch.ones_like(low, dtype=torch.bool))
    reached = search.within(batch, torch.full_like(low, LARGEST), ~at_once)
    high = torch.full_like(low, LARGEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        hit = search.within(batch, middle, reached)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    found = torch.where(reached, high, torch.full_like(high, float("inf")))
    return torch.where(at_once, torch.zeros_like(found), found).cpu()


def few(domain: Domain, classes: Sequence[str], each: int, size: int) -> Iterator[Batch]:
    """The first `each` test items of every class, with their images, in batches of at most `size`, or of one class."""
    waiting: list[Batch] = []
    count = 0
    for part in (part for name in classes for part in _first(domain, name, each)):
        own = len(domain.item_names(part))
        if waiting and count + own > size:
            yield joined(waiting)
            waiting, count = [], 0
        waiting.append(domain.shown(part))
        count += own
    if waiting:
        yield joined(waiting)


def _first(domain: Domain, name: str, count: int) -> Iterator[Batch]:
    for batch in domain.loader([name], train=False):
        own = len(domain.item_names(batch))
        yield batch if own <= count else domain.part_of(batch, torch.arange(own) < count)
        count -= own
        if count <= 0:
            return


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several: tensors, lists and tuples one behind the other, other fields as in the first."""

    def together(column: Sequence[Any]) -> Any:
        if isinstance(column[0], Tensor):
            return torch.cat(list(column))
        return sum(column[1:], column[0]) if isinstance(column[0], list | tuple) else column[0]

    return type(batches[0])(*map(together, zip(*batches, strict=True)))


def picked(batch: Batch, kept: Tensor) -> Batch:
    """The batch with the items [N] that are kept: rows of tensors, members of lists and tuples."""

    def part(column: Any) -> Any:
        if isinstance(column, Tensor):
            return column[kept.to(column.device)]
        if isinstance(column, list | tuple):
            return type(column)(one for one, own in zip(column, kept.tolist(), strict=True) if own)
        return column

    return type(batch)(*map(part, batch))


@dataclass
class _Search:
    """What is looked for; an image that has reached the aim is not moved any further."""

    domain: Domain
    model: nn.Module
    deviation: Tensor
    leave: bool
    seed: int

    def within(self, batch: Batch, eps: Tensor, among: Tensor) -> Tensor:
        """[N] whether the aim is reached within `eps` [N] of each image; of those `among` [N] only."""
        images = batch.images
        generator = torch.Generator(images.device).manual_seed(self.seed)
        reach = eps.view(-1, 1, 1, 1) / self.deviation
        moves = bool(eps.any())
        hit = torch.zeros_like(among)
        for restart in range(RESTARTS if moves else 1):
            start = 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1
            left = among & ~hit
            if left.any():
                moved = (start * reach if restart else torch.zeros_like(images))[left]
                hit[left] = self._descend(picked(batch, left), moved, reach[left], STEPS if moves else 0)
        return hit

    def _descend(self, batch: Batch, moved: Tensor, reach: Tensor, steps: int) -> Tensor:
        """[N] whether the aim is reached in some step."""
        hit = torch.zeros(len(moved), dtype=torch.bool, device=moved.device)
        left = torch.arange(len(moved), device=moved.device)
        for _ in range(steps):
            moved.requires_grad_(True)
            loss, done = self._look(batch, moved)
            (slope,) = torch.autograd.grad(loss, moved)
            moved = (moved.detach() - 2.5 / STEPS * reach * slope.sign()).clamp(-reach, reach)
            hit[left[done]] = True
            if done.all():
                return hit
            if done.any():
                left, moved, reach, batch = left[~done], moved[~done], reach[~done], picked(batch, ~done)
        with torch.no_grad():
            hit[left] = self._look(batch, moved)[1]
        return hit

    def _look(self, batch: Batch, moved: Tensor) -> tuple[Tensor, Tensor]:
        """(what is descended, [N] whether the aim is reached)."""
        prediction = self.domain.predict(self.model, batch._replace(images=batch.images + moved))
        loss = F.cross_entropy(prediction.scores, prediction.labels, reduction="sum")
        named = prediction.scores.argmax(-1) == prediction.labels
        return (-loss, ~named) if self.leave else (loss, named)
