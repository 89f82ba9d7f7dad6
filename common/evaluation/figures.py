"""A figure of a proof: one quantity of the original, of the result and of the references, with intervals and the leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from common.evaluation.intervals import (
    Estimate,
    Statistic,
    clopper_pearson,
    percentile,
    replicates,
    resamples,
    unbiased,
)

ORIGINAL, RESULT, REFERENCE = "original", "result", "reference"
APART = 0.05  # smallest distance of original and references in which a leak can be measured
Values = Mapping[str, np.ndarray]  # subject -> [draws, n], each item's outcome 0..1


@dataclass(frozen=True)
class Figure:
    """One quantity; a larger value means that more of the forgotten classes is left.

    unit:       "share" (0..1) or the name of a distance.
    original, result, references: None or [] where that model was not attacked.
    leak:       (result - mean reference) / (original - mean reference): 0 like a model that never saw the classes,
        1 like the original; None with the reason in `no_leak`.
    chance:     probability of so high a value, were the highest reference the truth; None without references.
    above:      the lower end of the result's interval lies above every reference (see `verdict.above` for headlines).
    headline:   counts for the verdict; the others explain.
    kept:       about what was not to be forgotten, where a high value is no leak.
    """

    attack: str
    name: str
    unit: str
    n: int
    original: Estimate | None
    result: Estimate
    references: Sequence[Estimate]
    leak: Estimate | None
    no_leak: str
    headline: bool
    chance: float | None
    kept: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def above(self) -> bool:
        return bool(self.references) and not self.kept and self.result.low > max(r.value for r in self.references)

    def record(self) -> dict[str, Any]:
        """Plain data for proof.json."""

        def plain(e: Estimate | None) -> dict[str, float] | None:
            return None if e is None else e._asdict()

        return asdict(self) | {
            "original": plain(self.original),
            "result": plain(self.result),
            "references": [plain(r) for r in self.references],
            "leak": plain(self.leak),
            "above": self.above,
        }


def references_of(subjects: Mapping[str, Any]) -> list[str]:
    """The names of the references among the names of subjects."""
    return [name for name in subjects if name.startswith(REFERENCE)]


def share(
    attack: str, name: str, values: Values, count: int, seed: int = 0, headline: bool = False, kept: bool = False,
    **parameters: Any,
) -> Figure:  # fmt: skip
    """A figure from outcomes per item; exact intervals for one draw, else bootstrap over items.

    values: subject -> [draws, n].
    """
    n = next(iter(values.values())).shape[1]

    def statistic(outcomes: np.ndarray) -> Statistic:
        each = outcomes.mean(0)
        return lambda at: float(each[at].mean())

    def exact(subject: str, found: Estimate) -> Estimate:
        outcomes = values[subject]
        return clopper_pearson(round(float(outcomes.sum())), n) if len(outcomes) == 1 else found

    statistics = {subject: statistic(outcomes) for subject, outcomes in values.items()}
    return _figure(attack, name, "share", statistics, n, count, seed, headline, kept, parameters, exact)


def distance(
    attack: str, name: str, unit: str, statistics: Mapping[str, Statistic], n: int, count: int, seed: int = 0,
    **parameters: Any,
) -> Figure:  # fmt: skip
    """A figure from statistics of items that are at least 0, with bootstrap intervals less their bias."""
    return _figure(
        attack, name, unit, statistics, n, count, seed, False, False, parameters, lambda subject, found: found, unbiased
    )


def _figure(  # type: ignore[no-untyped-def]
    attack,
    name,
    unit,
    statistics,
    n,
    count,
    seed,
    headline,
    kept,
    parameters,
    refined,
    corrected=lambda _, moved: moved,
) -> Figure:
    draws, everything = resamples(n, count, seed), np.arange(n)
    values = {subject: one(everything) for subject, one in statistics.items()}
    moved = {s: corrected(values[s], replicates(one, draws)) for s, one in statistics.items()}
    estimates = {s: refined(s, percentile(values[s], moved[s], n)) for s in statistics}
    found, reason = (None, "about what was not to be forgotten") if kept else leak(values, moved, n, seed)
    references = [estimates[s] for s in references_of(estimates)]
    top = max((r.value for r in references), default=None)
    chance = None if top is None else exceeding(values[RESULT], float(moved[RESULT].std()), top, n)
    return Figure(attack, name, unit, n, estimates.get(ORIGINAL), estimates[RESULT], references, found, reason, headline,
                  chance, kept, parameters)  # fmt: skip


def exceeding(value: float, deviation: float, top: float, n: int) -> float:
    """Probability that a quantity whose truth is `top` comes out at `value` or higher: normal, with the deviation of its
    bootstrap replicates, and at least that of one item in n."""
    return float(stats.norm.sf((value - top) / max(deviation, 1 / n)))


def leak(
    values: Mapping[str, float], moved: Mapping[str, np.ndarray], n: int, seed: int = 0
) -> tuple[Estimate | None, str]:
    """((u - r) / (o - r) or None, why there is none); items and references are resampled together.

    Args:
        values: subject -> the quantity; moved: subject -> [count] replicates of it on the same resampled items.
    """
    names = references_of(values)
    if not names:
        return None, "no reference"
    if ORIGINAL not in values:
        return None, "the original was not attacked"
    mean = float(np.mean([values[s] for s in names]))
    gap = values[ORIGINAL] - mean
    if gap < APART:
        return None, "the original is no better than models that never saw the classes"
    clouds = np.stack([moved[s] for s in names])  # [references, count]
    count = clouds.shape[1]
    chosen = np.random.default_rng([seed, len(names)]).integers(0, len(names), (len(names), count))
    floor = np.take_along_axis(clouds, chosen, axis=0).mean(0)
    width = np.maximum(moved[ORIGINAL] - floor, APART)
    return percentile((values[RESULT] - mean) / gap, (moved[RESULT] - floor) / width, n), ""
