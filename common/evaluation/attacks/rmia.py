"""Robust membership inference with few reference models (RMIA): was this very item used?"""

from __future__ import annotations

import numpy as np


def scores(
    target: np.ndarray, out: np.ndarray, population: np.ndarray, population_out: np.ndarray, a: float = 0.3,
    gamma: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """[N] membership score of each item: Pr_z[(p(x) / q(x)) / (p(z) / q(z)) > gamma], 0 stranger .. 1 member.

    Args:
        target, population: [N] and [Z] probability of the true class by the attacked model, of the items in
            question and of items known to be non-members.
        out, population_out: [R, N] and [R, Z], the same by models that never saw the items (but know their class).
        a: q(x) = (1 + a) / 2 mean_out(x) + (1 - a) / 2, the offline correction.

    Non-members of a forgotten class are its test images; images of other classes would measure the class.

    Source: Zarifzadeh, Liu and Shokri, ICML 2024, arXiv:2312.03262; gamma 1 as in their code.
    """
    own, other = (p / ((1 + a) / 2 * q.mean(0) + (1 - a) / 2) for p, q in ((target, out), (population, population_out)))
    return (own[:, None] > gamma * other[None]).mean(1)


def auc(members: np.ndarray, strangers: np.ndarray) -> float:
    """Probability that a member scores above a stranger, ties half: 0.5 no knowledge, 1 all known."""
    difference = members[:, None] - strangers[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
