"""Measures over a sequence of tasks, from the table of scores: table[t][j] is the score of task j after task t.

Tasks count from 0. Entries above the diagonal (tasks not learned yet) are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError

Table = Sequence[Sequence[float]]


def last_accuracy(table: Table, sizes: Sequence[int] | None = None) -> float:
    """Mean score over all tasks after the last one.

    sizes: test images per task; with them every image counts the same, without them every task does.
    """
    return _mean(_checked(table)[-1], sizes)


def average_accuracy(table: Table, sizes: Sequence[int] | None = None) -> float:
    """Average incremental accuracy: the mean, over all moments, of the score on the tasks learned so far.

    Source: Rebuffi et al., CVPR 2017, arXiv:1611.07725, section 4.
    """
    rows = _checked(table)
    return _mean([_mean(row, sizes[: len(row)] if sizes else None) for row in rows])


def forgetting(table: Table, after: int | None = None, best: str = "learned") -> float:
    """Mean fall of ALL old tasks, in points: score when learned minus score after task `after` (default: the last).

    best: "learned" takes the score right after a task was learned, so that the result is minus the backward
        transfer; "ever" the best score at any moment before `after` (Chaudhry et al., ECCV 2018,
        arXiv:1801.10112).

    Zero when there is no old task.
    """
    if best not in ("learned", "ever"):
        raise UserError(f"`best` must be 'learned' or 'ever', got {best!r}.")
    rows = _checked(table)
    t = len(rows) - 1 if after is None else after
    falls = []
    for j in range(t):
        high = rows[j][j] if best == "learned" else max(rows[i][j] for i in range(j, t))
        falls.append(high - rows[t][j])
    return _mean(falls)


def backward_transfer(table: Table) -> float:
    """Mean gain of all old tasks since they were learned, in points; negative means forgetting.

    Source: Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840, equation 3.
    """
    rows = _checked(table)
    return _mean([rows[-1][j] - rows[j][j] for j in range(len(rows) - 1)])


def accuracy_gap(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Mean of score - reference in points, over tasks: what unlearning cost (negative) or gained.

    Args:
        scores: of the tasks still remembered, by the model that unlearned others.
        reference: of the same tasks, by the same method without any unlearning.
    """
    if len(scores) != len(reference):
        raise UserError(f"{len(scores)} scores cannot be compared with {len(reference)} of the reference.")
    return _mean([a - b for a, b in zip(scores, reference, strict=True)])


def _mean(values: Sequence[float], sizes: Sequence[int] | None = None) -> float:
    if not len(values):
        return 0.0
    weights = [1] * len(values) if sizes is None else sizes
    if len(weights) != len(values) or sum(weights) <= 0:
        raise UserError(f"`sizes` must hold one positive number for each of {len(values)} tasks, got {list(weights)}.")
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def _checked(table: Table) -> list[list[float]]:
    """The lower triangle. Raises UserError when a row is too short."""
    if not len(table):
        raise UserError("the table of scores is empty.")
    for t, row in enumerate(table):
        if len(row) <= t:
            raise UserError(f"row {t} of the table must hold {t + 1} scores (one per task so far), got {len(row)}.")
    return [list(row[: t + 1]) for t, row in enumerate(table)]
