"""Curves as files: behind the scores of every class, and over the phases of the rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.record import write_text
from common.report.plots import finite
from common.report.svg import Axes, Line, drawing
from common.report.table import Table

if TYPE_CHECKING:
    from common.domain import Evaluation  # loads torch


def draw_curves(found: Mapping[str, Evaluation], path: Path, axes: tuple[str, str]) -> None:
    """Writes an SVG file: one panel per group, one line per class with the mean height of its curve.

    Args:
        found: what a domain found out, by group; its curves are values in 0..1 over evenly spaced ones from 0 to 1.
        axes: what the curves show, such as ("recall", "precision at IoU 0.5").

    Raises:
        UserError: a domain without curves.
    """
    if not any(evaluation.curves for evaluation in found.values()):
        raise UserError("--curves: there are no curves of these scores; detectors have them.")
    charts = []
    for group, evaluation in found.items():
        lines = []
        for number, (name, curve) in enumerate(evaluation.curves.items()):
            points = [(i / (len(curve) - 1), finite(y)) for i, y in enumerate(curve)]
            title = f"{name}, mean {100 * sum(curve) / len(curve):.0f}"
            lines.append(Line(title, 360 * number / len(evaluation.curves), points))
        charts.append((lines, Axes(*axes, (0, 1), [(0, 1, group)])))
    write_text(path, drawing(charts))


def draw_scores(table: Table) -> str:
    """The text of an SVG file: a panel per group, in it the score of every row before and after each phase, means over
    seeds."""
    groups = dict.fromkeys(g for members in table.sets for g in members[0].groups)
    count = max(len(run.moments) for members in table.sets for run in members)
    moments = ["before", *(f"phase {i}" for i in range(1, count))]
    charts = []
    for group in groups:
        lines = []
        for number, (row, members) in enumerate(zip(table.rows, table.sets, strict=True)):
            seen = [[m.scores[group] for m in run.moments if group in m.scores] for run in members]
            points = [(float(i), statistics.fmean(own)) for i, own in enumerate(zip(*seen, strict=False))]
            lines.append(Line(row[0], 360 * number / len(table.rows), points, marks=True))
        charts.append((lines, Axes(group, table.metric_label, (0, 100), labels=moments)))
    return drawing(charts)
