"""The curves of every class as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.domain import Evaluation
from common.errors import UserError
from common.record import write_bytes
from common.report.plots import finite
from common.report.svg import Axes, Line, drawing


def draw_curves(found: Mapping[str, Evaluation], path: Path, axes: tuple[str, str]) -> None:
    """Writes an SVG file: one panel per group of classes, one line per class.

    Args:
        axes: names of both axes; the curves' values (0..1) lie at evenly spaced places from 0 to 1 of the first.

    Raises:
        UserError: the domain has no curves.
    """
    if not any(evaluation.curves for evaluation in found.values()):
        raise UserError("`--curves`: these scores have no curves; leave the flag out.")
    charts = []
    for group, evaluation in found.items():
        lines = []
        for number, (name, values) in enumerate(evaluation.curves.items()):
            points = [(i / (len(values) - 1), finite(y)) for i, y in enumerate(values)]
            title = f"{name}, mean {100 * sum(values) / len(values):.0f} %"
            lines.append(Line(title, 360 * number / len(evaluation.curves), points))
        charts.append((lines, Axes(*axes, (0, 1), [(0, 1, group)])))
    write_bytes(path, drawing(charts).encode())
