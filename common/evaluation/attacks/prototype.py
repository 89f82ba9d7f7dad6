"""Prototype attack: the mean feature of a few items becomes the head row of a forgotten class; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.evaluation.attacks.shots import few


class Recovered(NamedTuple):
    """[draws, n] whether test items are named again: of forgotten classes, and of the classes that were kept."""

    forgotten: np.ndarray
    retained: np.ndarray


def recovered(
    head: np.ndarray, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray],
    forgotten: Sequence[int], shots: int, alpha: float, draws: int, seed: int = 0,
) -> Recovered:  # fmt: skip
    """Puts w_c <- alpha p_c + (1 - alpha) w_c into the rows of forgotten classes and answers by cosine.

    Args:
        head: [C, D] rows of the classifier in the order of the labels.
        train, test: embeddings [N, D] and labels [N].
        shots: k, items per forgotten class; p_c is the mean of their features, normalised, as w_c is.
        alpha: 1 replaces the row, 0.5 blends it.

    Range 0..1; high: k items bring the class back. Compare with models that never saw it.

    Source: prototypical relearning attack, "Spotter", arXiv:2506.01318 (k = 5, alpha 0.5 or 1, cosine metric).
    """
    (x, y), (features, labels) = train, test
    features = _unit(features)
    gone = np.isin(labels, forgotten)
    hits = []
    for draw in range(draws):
        rows = _unit(head)
        own = few(y, shots, seed + draw)
        for c in forgotten:
            prototype = _unit(x[own][y[own] == c].mean(0))
            rows[c] = _unit(alpha * prototype + (1 - alpha) * rows[c])
        hits.append((features @ rows.T).argmax(1) == labels)
    found = np.array(hits, dtype=float)
    return Recovered(found[:, gone], found[:, ~gone])


def class_means(x: np.ndarray, y: np.ndarray, count: int) -> np.ndarray:
    """[count, D] mean feature of every class: head rows for a model whose head cannot be read as rows."""
    return np.stack([x[y == c].mean(0) for c in range(count)])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
