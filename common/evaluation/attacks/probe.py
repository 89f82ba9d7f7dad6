"""Linear probe: a fresh logistic head on frozen features, trained on the attacker's few labelled items."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from common.evaluation.attacks.shots import few

STEPS, COST = 500, 1.0


def recovered(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], forgotten: Sequence[int],
    shots: float, draws: int, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """[draws, n] whether each test item of a forgotten class is named by a probe over all classes.

    Args:
        train, test: features [N, D] and labels [N] of all classes, forgotten and known.
        shots: items per class, see `few`; `draws` choices of them.

    Range 0..1; high: the features still hold the class. Only the gap to models that never saw it counts: with all
    data even those are probed at 90 % and more. Constants: multinomial logistic regression, L2 with C = 1, features
    standardised by mean and deviation of all training features, at most 500 steps.

    Source: "An Illusion of Unlearning?", arXiv:2604.08271; IDI, arXiv:2405.17878.
    """
    (x, y), (features, labels) = train, test
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    asked = np.isin(labels, forgotten)
    target = (features[asked] - mean) / deviation
    found = []
    for draw in range(draws):
        own = few(y, shots, seed + draw)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The number of unique classes is greater", UserWarning
            )  # so it is with one shot
            head = LogisticRegression(C=COST, max_iter=STEPS).fit((x[own] - mean) / deviation, y[own])
        found.append(head.predict(target) == labels[asked])
    return np.array(found, dtype=float)
