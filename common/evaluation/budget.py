"""How much an attacker may spend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """What is tried, and how often.

    items:    training and test items (images) used of each class, at most.
    blocks:   blocks probed besides the embedding; 0: all.
    shots:    items per class of probes (below 1: a share; 0: all); draws: choices of them.
    prototypes, alphas: k and blends of the prototype attack.
    relearn_shots, relearn_steps, relearn_rates: runs of the relearning attack; rates are multiples of `Case.attack_rate`.
    retain_only: also relearn without any forgotten item.
    dropped:  adapter blocks dropped one by one, at most.
    radius:   images whose recovery radius is searched, of forgotten and of retained classes each.
    replicates: bootstrap samples.
    """

    name: str
    items: int
    blocks: int
    shots: tuple[float, ...]
    draws: int
    prototypes: tuple[int, ...]
    alphas: tuple[float, ...]
    relearn_shots: tuple[int, ...]
    relearn_steps: int
    relearn_rates: tuple[float, ...]
    retain_only: bool
    dropped: int
    radius: int
    replicates: int

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


BUDGETS = {
    "quick": Budget("quick", 150, 2, (1, 5), 5, (1, 5), (1.0, 0.5), (5,), 24, (1.0,), False, 0, 0, 400),
    "full": Budget("full", 500, 0, (1, 5, 20, 0.02, 0), 10, (1, 5, 10), (1.0, 0.5), (1, 5), 120, (0.1, 0.3, 1.0), True,
                   12, 32, 2000),
}  # fmt: skip
