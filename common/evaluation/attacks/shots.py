"""Which labelled items an attacker owns."""

from __future__ import annotations

import numpy as np


def few(labels: np.ndarray, shots: float, seed: int) -> np.ndarray:
    """Sorted positions of an attacker's items: `shots` of every class, a share of each below 1, all of them at 0.

    A function of labels and seed alone, so that every model is attacked with the same items.
    """
    random = np.random.default_rng(seed)
    picked = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        size = len(own) if shots == 0 else max(1, round(shots * len(own))) if shots < 1 else int(shots)
        picked.append(random.permutation(own)[:size])
    return np.sort(np.concatenate(picked))


def title(shots: float) -> str:
    """'1 shot', '5 shots', '2 % of the data', 'all data'."""
    if shots == 0:
        return "all data"
    return f"{100 * shots:g} % of the data" if shots < 1 else f"{shots:g} shot{'' if shots == 1 else 's'}"
