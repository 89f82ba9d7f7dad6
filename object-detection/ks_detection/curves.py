"""Precision-recall curves as a picture."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.record import write_bytes
from common.report.plots import finite
from common.report.svg import Axes, Line, drawing


def draw_curves(groups: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Writes an SVG file: one panel per group, one line per class, precision over recall at IoU 0.5.

    Args:
        groups: group -> class -> precision (0..1) at recall 0, 0.01, .. 1.

    Raises:
        UserError: another suffix than .svg.
    """
    if path.suffix != ".svg":
        raise UserError(f"--curves {path}: the file must end in .svg.")
    charts = []
    for group, classes in groups.items():
        lines = []
        for number, (name, precision) in enumerate(classes.items()):
            points = [(i / 100, finite(y)) for i, y in enumerate(precision)]
            title = f"{name}, AP50 {100 * sum(precision) / len(precision):.0f}"
            lines.append(Line(title, 360 * number / len(classes), points))
        charts.append((lines, Axes("recall", "precision at IoU 0.5", (0, 1), [(0, 1, group)])))
    write_bytes(path, drawing(charts).encode())
