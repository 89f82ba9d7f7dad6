"""One endless shuffled stream of items whose batch k is a function of (seed, k) alone.

That is what makes a killed run resume exactly (start at batch k), and two ranks equal one process with the
doubled batch (rank r takes the r-th part of every global batch).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def derive(seed: int, *words: object) -> int:
    """A 63-bit seed from a seed and any words, the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@cache
def accelerated() -> bool:
    """Whether there is a device besides the CPU."""
    return torch.accelerator.is_available()


def seed_all(seed: int) -> None:
    """Seeds torch, and Python's and numpy's own generators for methods and domains that use them."""
    if accelerated():
        torch.manual_seed(seed)
    else:  # without an accelerator manual_seed formats a stack trace for each kind of one, a millisecond in all
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@dataclass(frozen=True)
class Draw:
    """Which item to load, and the seed of its augmentation; None gives the same view every time."""

    index: int
    seed: int | None


@dataclass(frozen=True)
class Stream:
    """A slice of the stream: where to start, how much per batch, which rank's part.

    seed:       one per phase and role, so that target and keep streams are independent.
    batch_size: items per batch on this rank; a global batch holds batch_size * world.
    start:      number of batches to leave out (a resumed run).
    """

    seed: int
    batch_size: int
    start: int = 0
    rank: int = 0
    world: int = 1

    def batches(self, size: int) -> Iterator[list[Draw]]:
        """Endless lists of draws from `size` items: every item once per round, each round newly shuffled."""
        order, current = torch.empty(0, dtype=torch.long), -1
        first = (self.start * self.world + self.rank) * self.batch_size
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // size != current:
                    current = position // size
                    generator = torch.Generator().manual_seed(derive(self.seed, "round", current))
                    order = torch.randperm(size, generator=generator)
                batch.append(Draw(int(order[position % size]), derive(self.seed, "item", position)))
            yield batch
            first += self.batch_size * self.world

    def steps(self, size: int) -> int:
        """Batches in one pass over `size` items, the last one filled up from the next round."""
        return -(-size // (self.batch_size * self.world))


@dataclass(frozen=True)
class Ordered(Stream):
    """One finite pass over this rank's share, in order and without augmentation: for importances and means.

    items: these positions only, instead of all.
    """

    items: tuple[int, ...] | None = None

    def positions(self, size: int) -> list[int]:
        """This rank's items in the order of its batches."""
        return list(range(size) if self.items is None else self.items)[self.rank :: self.world]

    def batches(self, size: int) -> Iterator[list[Draw]]:
        share = self.positions(size)
        for i in range(0, len(share), self.batch_size):
            yield [Draw(position, None) for position in share[i : i + self.batch_size]]


@dataclass(frozen=True)
class Chosen(Stream):
    """The endless stream over some of the items only: a small memory of old examples."""

    items: tuple[int, ...] = ()

    def batches(self, size: int) -> Iterator[list[Draw]]:
        for batch in super().batches(len(self.items)):
            yield [Draw(self.items[d.index], d.seed) for d in batch]


def load_batches(
    stream: Stream, indices: Sequence[int], make: Callable[[list[Draw]], Any], workers: int
) -> Iterable[Any]:
    """`make(draws)` for every batch that `stream` draws from these items.

    The number of workers changes no batch, and no random number is drawn in this process.

    Args:
        make: can be pickled when there are workers.
        workers: processes that make batches; 0 makes them in this one.
    """
    draws = ([Draw(indices[d.index], d.seed) for d in batch] for batch in stream.batches(len(indices)))
    if workers == 0:
        return map(make, draws)
    own = torch.Generator()  # else the loader would draw a seed from torch's generator
    return DataLoader(_Keys(), batch_size=None, sampler=draws, collate_fn=make, num_workers=workers, generator=own)


class _Keys(Dataset[Any]):
    """A data set whose item is its key: a list of draws, of which the loader's `collate_fn` makes the batch."""

    def __getitem__(self, batch: list[Draw]) -> list[Draw]:
        return batch
