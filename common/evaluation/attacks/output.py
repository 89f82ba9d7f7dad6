"""What the model says: accuracy, what a class is now called, and the distance of its answers to other models' answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist


def correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[1, N] whether the largest of [N, C] logits stands in the column of the true class.

    Its mean is the accuracy, 0..1; high: the class is still named. Source: every paper (100 - "UA" of SalUn).
    """
    return (logits.argmax(1) == labels)[None].astype(float)


def confusion(
    logits: np.ndarray, confidence: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """Label -> {"answers": {name: count}, most frequent first, "confidence": its mean 0..1, "n"}.

    One frequent answer given with confidence is a trace of its own: models that never saw a class spread it.
    """
    found: dict[int, dict[str, Any]] = {}
    for label in np.unique(labels):
        own = labels == label
        counts = np.bincount(logits[own].argmax(1), minlength=logits.shape[1])
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        answers = {names[i]: int(counts[i]) for i in order}
        found[int(label)] = {"answers": answers, "confidence": float(confidence[own].mean()), "n": int(own.sum())}
    return found


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of [N, C] and [M, C]: 0 for equal distributions, at most 2 sqrt(2) between
    softmax vectors.

    Source: Szekely and Rizzo, Journal of Statistical Planning and Inference 143, 2013.
    """
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())
