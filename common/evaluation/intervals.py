"""95 % intervals: Clopper-Pearson for shares, the bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
Statistic = Callable[[np.ndarray], float]  # of the items at these positions


class Estimate(NamedTuple):
    """A number, its 95 % interval, and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


def clopper_pearson(hits: int, n: int) -> Estimate:
    """The exact interval of a share, 0..1, of `hits` out of `n` items; 0..1 wide where there is no item.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Estimate(hits / n if n else float("nan"), low, high, n)


def resamples(n: int, count: int, seed: int) -> np.ndarray:
    """[count, n] positions drawn with replacement, the same for every statistic of the same n."""
    return np.random.default_rng([seed, n]).integers(0, n, (count, n))


def replicates(statistic: Statistic, draws: np.ndarray) -> np.ndarray:
    """[count] values of a statistic on resampled items, [count, n]."""
    return np.array([statistic(draw) for draw in draws])


def unbiased(value: float, values: np.ndarray) -> np.ndarray:
    """Replicates less their bias, their mean minus the value, and at least 0. Items that are drawn twice move two samples
    apart, so that replicates of a distance lie above it. Source: Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 10."""
    return np.maximum(values - values.mean() + value, 0.0)


def percentile(value: float, values: np.ndarray, n: int) -> Estimate:
    """`value` with the percentile interval of its replicates. Source: Efron, Annals of Statistics 7, 1979."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), n)
