"""A small memory of old examples: which to keep, and how many of each class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.knobs import Checked, knob
from common.streams import derive

STRATEGIES = ("herding", "random", "equal_random", "reservoir")
Embed = Callable[[list[Any]], Tensor]


@dataclass
class ExemplarConfig(Checked):
    """How much is remembered and how it is chosen."""

    exemplars: int = knob(20, "examples kept per class, or in all", least=1)
    exemplars_per: str = knob("class", "what `--exemplars` counts", ["class", "total"])
    exemplar_strategy: str = knob("herding", "how examples are chosen", STRATEGIES)


def herd(embeddings: Tensor, count: int, normalize: bool = True) -> list[int]:
    """Up to `count` different rows whose running mean stays nearest to the mean of all rows, best first.

    Row k + 1 is argmin_x || mu - (x + sum of the k chosen) / (k + 1) ||; the first of equals is taken.

    Source: iCaRL, Rebuffi et al., CVPR 2017, arXiv:1611.07725, algorithm 4.
    """
    z = embeddings.detach().double().cpu().numpy()
    if normalize:
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    mean, total = z.mean(0), np.zeros(z.shape[1])
    chosen: list[int] = []
    free = np.ones(len(z), dtype=bool)
    for k in range(min(count, len(z))):
        cost = np.linalg.norm(mean - (z + total) / (k + 1), axis=1)
        best = int(np.where(free, cost, np.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += z[best]
    return chosen


class Exemplars:
    """Remembered items by class: references (paths, indices) or tensors, never one twice.

    Strategies:
        herding:      per class, those whose mean is nearest to the class's; a smaller share keeps the best.
        equal_random: per class, drawn at random.
        random:       drawn at random from all that is offered and remembered, classes not looked at.
        reservoir:    a uniform sample of everything ever offered (Vitter, 1985), classes not looked at.

    With `exemplars_per` "class" the size counts per class (random then holds size x classes in one pool, and
    there is a reservoir for each class); with "total" it is shared out. Every draw depends on the seed and on
    what was offered before, so a resumed run goes on with the same ones.
    """

    def __init__(self, config: ExemplarConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.store: dict[Hashable, list[Any]] = {}
        self.offers = 0  # calls of `add`, so that each draws anew
        self.seen: dict[Hashable, int] = {}  # reservoir (a class, or None for the one of all) -> items it was offered

    def __len__(self) -> int:
        return sum(map(len, self.store.values()))

    def __iter__(self) -> Iterator[tuple[Any, Hashable]]:
        """(item, class) pairs, class by class."""
        return ((item, c) for c, items in self.store.items() for item in items)

    def add(self, items: Sequence[Any], labels: Iterable[Hashable], embed: Embed | None = None) -> None:
        """Offers the examples of a phase; items that are remembered already change nothing.

        embed: items -> [N, D] embeddings by the present model; herding needs it.

        Raises:
            UserError: lengths differ, herding without `embed`, or fewer slots than classes.
        """
        labels = [c.item() if isinstance(c, (Tensor, np.generic)) else c for c in labels]
        if len(items) != len(labels):
            raise UserError(f"{len(items)} items need as many labels, got {len(labels)}.")
        self.offers += 1
        rng = np.random.default_rng(derive(self.seed, "exemplars", self.offers))
        fresh = self._fresh(items, labels)
        for c in fresh:
            self.store.setdefault(c, [])
        if self.config.exemplar_strategy == "random":
            self._put(self._draw(fresh, rng))
            return
        if self.config.exemplar_strategy == "reservoir":
            self._put(self._reservoir(fresh, rng))
            return
        shares = self._shares()
        for c in self.store:
            if c in fresh:
                self.store[c] = self._choose(self.store[c] + fresh[c], shares[c], rng, embed)
            del self.store[c][shares[c] :]

    def forget(self, classes: Iterable[Hashable]) -> None:
        """Drops every item of these classes."""
        for c in classes:
            self.store.pop(c, None)
            self.seen.pop(c, None)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"store": {c: list(v) for c, v in self.store.items()}, "offers": self.offers, "seen": dict(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.store = {c: list(v) for c, v in state["store"].items()}
        self.offers, self.seen = state["offers"], dict(state["seen"])

    def _fresh(self, items: Sequence[Any], labels: list[Hashable]) -> dict[Hashable, list[Any]]:
        """The offered items by class, without those remembered and without repetitions."""
        known = {(c, _key(item)) for item, c in self}
        fresh: dict[Hashable, list[Any]] = {}
        for item, c in zip(items, labels, strict=True):
            key = (c, _key(item))
            if key not in known:
                known.add(key)
                item = item.detach().cpu().clone() if isinstance(item, Tensor) else item
                fresh.setdefault(c, []).append(item)
        return fresh

    def _shares(self) -> dict[Hashable, int]:
        """Slots per class; what does not divide evenly goes to the first classes, and no share ever grows."""
        size, classes = self.config.exemplars, len(self.store)
        if self.config.exemplars_per == "class":
            return dict.fromkeys(self.store, size)
        if size < classes:
            raise UserError(f"`--exemplars {size}` in all is fewer than the {classes} classes to remember.")
        return {c: size // classes + (i < size % classes) for i, c in enumerate(self.store)}

    def _choose(self, items: list[Any], share: int, rng: np.random.Generator, embed: Embed | None) -> list[Any]:
        if self.config.exemplar_strategy == "herding":
            if embed is None:
                raise UserError("herding needs `embed`, which gives the embeddings of items.")
            with torch.no_grad():
                order = herd(embed(items), share)
        else:
            order = rng.permutation(len(items))[:share].tolist()
        return [items[i] for i in order]

    def _draw(self, fresh: dict[Hashable, list[Any]], rng: np.random.Generator) -> list[tuple[Any, Hashable]]:
        pool = list(self) + [(item, c) for c, items in fresh.items() for item in items]
        size = self.config.exemplars * (len(self.store) if self.config.exemplars_per == "class" else 1)
        return [pool[i] for i in sorted(rng.permutation(len(pool))[:size].tolist())]

    def _reservoir(self, fresh: dict[Hashable, list[Any]], rng: np.random.Generator) -> list[tuple[Any, Hashable]]:
        one = self.config.exemplars_per == "total"
        pools: dict[Hashable, list[tuple[Any, Hashable]]] = {}
        for item, c in self:
            pools.setdefault(None if one else c, []).append((item, c))
        offered = [(item, c) for c, items in fresh.items() for item in items]
        for item, c in (offered[i] for i in rng.permutation(len(offered))):
            name = None if one else c
            pool = pools.setdefault(name, [])
            self.seen[name] = self.seen.get(name, 0) + 1
            if len(pool) < self.config.exemplars:
                pool.append((item, c))
            elif (slot := int(rng.integers(self.seen[name]))) < self.config.exemplars:
                pool[slot] = (item, c)
        return [pair for pool in pools.values() for pair in pool]

    def _put(self, pool: list[tuple[Any, Hashable]]) -> None:
        self.store = {c: [item for item, own in pool if own == c] for c in self.store}


def _key(item: Any) -> Hashable:
    """Equal for equal items: tensors and arrays by their content."""
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item))
    if isinstance(item, Tensor):
        values = (
            item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        )  # bytes: bfloat16 has no numpy kind
        return tuple(item.shape), str(item.dtype), hashlib.blake2b(values.data, digest_size=16).digest()
    return item
