"""Measures of runs that a table can show besides scores: one column each, mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import UserError
from common.record import REFERENCES
from common.report.runs import RunRecord, read_proof
from common.schema import read_json

Runs = Sequence[RunRecord]
FEW_SHOTS = ("probe", "prototype", "relearn")


class Column(NamedTuple):
    """A heading, the digits behind the point, and what is read: (runs of a row, all runs) -> a value per seed."""

    heading: str
    digits: int
    read: Callable[[Runs, Runs], list[float]]


def _each(heading: str, digits: int, read: Callable[[RunRecord], Any]) -> Column:
    """A column of what each run says about itself; runs that say nothing are left out."""
    return Column(heading, digits, lambda own, _: [float(v) for v in map(read, own) if v is not None])


def outcome(action: str) -> Callable[[RunRecord], float | None]:
    """The final score of the groups whose last action this was ("retain": never touched)."""
    return lambda run: (
        run.pooled([g for g in run.groups if run.role(g) == action], run.moments[-1]) if run.moments else None
    )


def _measure(name: str) -> Callable[[RunRecord], float | None]:
    """A measure that the run recorded at the end of its last phase."""
    return lambda run: next((m[name] for m in reversed(_measures(run)) if name in m), None)


def _measures(run: RunRecord) -> list[Mapping[str, float]]:
    return [line["measures"] for line in run.lines if "measures" in line]


def _h_mean(run: RunRecord) -> float | None:
    values = [m["h_mean"] for m in _measures(run) if "h_mean" in m]
    return statistics.fmean(values) if values else None


def _apart(own: Runs, every: Runs) -> list[float]:
    """By how many points forgotten and retained score are away from those of method `retrain` on the same plan."""
    goal = [run for run in every if run.method == "retrain" and run.plan == own[0].plan]
    columns = [COLUMNS[name].read for name in ("forgotten", "retained")]
    pairs = [(read(own, every), read(goal, every)) for read in columns]
    return [abs(statistics.fmean(a) - statistics.fmean(b)) for a, b in pairs] if all(a and b for a, b in pairs) else []


def _gap(own: Runs, every: Runs) -> list[float]:
    """Their mean."""
    apart = _apart(own, every)
    return [statistics.fmean(apart)] if apart else []


def _tug_of_war(own: Runs, every: Runs) -> list[float]:
    """ToW of Zhao et al., NeurIPS 2024, arXiv:2406.01257, on test items: the product of 1 - distance, in percent."""
    apart = _apart(own, every)
    return [100 * math.prod(1 - points / 100 for points in apart)] if apart else []


def _trained(run: RunRecord) -> float | None:
    counts = run.config.get("parameters")
    return 100 * counts["trainable"] / counts["total"] if counts else None


def _done(name: str, unit: float = 1) -> Callable[[RunRecord], float | None]:
    return lambda run: run.done[name] / unit if run.done and name in run.done else None


def _reference(part: str, name: str) -> Callable[[RunRecord], float | None]:
    """A figure of references.json (--with-references)."""

    def read(run: RunRecord) -> float | None:
        path = run.folder / REFERENCES
        return read_json(path).get(part, {}).get(name) if path.is_file() else None

    return read


def _leak(run: RunRecord) -> float | None:
    """The mean leak of the few-shot attacks that count for the verdict of proof.json: probe, prototype, relearning."""
    found = read_proof(run.folder)
    if found is None:
        return None
    own = [f for f in found["figures"] if f["headline"] and f["attack"] in FEW_SHOTS]
    leaks = [f["leak"]["value"] for f in own if f["leak"]]
    return statistics.fmean(leaks) if leaks else None


COLUMNS = {
    "learned": _each("learned ↑", 1, outcome("learn")),
    "forgotten": _each("forgotten ↓", 1, outcome("forget")),
    "retained": _each("retained ↑", 1, outcome("retain")),
    "h_mean": _each("H ↑", 1, _h_mean),
    "gap": Column("gap to Retrain ↓", 1, _gap),
    "tow": Column("ToW ↑", 1, _tug_of_war),
    "average": _each("average ↑", 1, _measure("average")),
    "last": _each("last ↑", 1, _measure("last")),
    "forgetting": _each("forgetting ↓", 1, _measure("forgetting")),
    "backward_transfer": _each("backward transfer ↑", 1, _measure("backward_transfer")),
    "distance_unlearned": _each("distance, unlearned ↓", 3, _reference("distance", "unlearned")),
    "distance_remaining": _each("distance, rest ↓", 3, _reference("distance", "remaining")),
    "floor_unlearned": _each("the same, Retrain twice, unlearned", 3, _reference("floor", "unlearned")),
    "floor_remaining": _each("the same, Retrain twice, rest", 3, _reference("floor", "remaining")),
    "accuracy_gap": _each("accuracy gap, rest ↑", 1, _reference("gap", "mean")),
    "leak": _each("leak ↓", 2, _leak),
    "steps": _each("steps", 0, lambda run: float(len(run.steps)) or None),
    "trains": _each("trains (%)", 1, _trained),
    "memory": _each("peak memory (MiB)", 0, _done("peak_memory", 2**20)),
    "seconds": _each("time (s)", 0, _done("seconds")),
    "cpu": _each("CPU time (s)", 0, _done("cpu_seconds")),
}
USUAL = ("learned", "forgotten", "retained", "h_mean", "trains", "memory", "seconds")


def chosen(names: Sequence[str], runs: Runs) -> dict[str, Column]:
    """The columns of these names; the name of a group means its final score.

    Raises:
        UserError: neither a measure nor a group of any of the runs.
    """
    groups = {group for run in runs for group in run.groups}
    found = {}
    for name in names:
        if name not in COLUMNS and name not in groups:
            raise UserError(f"no column {name!r}; there are: {', '.join([*COLUMNS, *sorted(groups)])}.")
        found[name] = COLUMNS.get(name) or _each(name, 1, _final(name))
    return found


def _final(group: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.moments[-1].scores.get(group) if run.moments else None
