"""A table of figures and curves per class, where a domain gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.report.plots import Plot, finite
from common.report.runs import RunRecord
from common.report.svg import Axes, Line, chart
from common.report.table import NONE

SHOWN = 8  # curves of a group; above, those whose area changed most
BEFORE, AFTER = "3 4", ""  # dashes


def figures(run: RunRecord) -> dict[str, Any] | None:
    """A table of every figure of every class, before and after, by group; None where the domain gives no figures.

    Returns:
        {"names": column heads, "groups": [{"group", "total": cells, "rows": [(class, cells)]}]}; a cell is
        "before → after", or a dash where a figure is of the group only.
    """
    if not run.details:
        return None
    before, after = run.details[0], run.details[-1]
    names = list(dict.fromkeys(n for moment in (before, after) for found in moment.values() for n in found["figures"]))
    if not names:
        return None
    parts = []
    for group, classes in run.groups.items():
        old, new = (_columns(run, index, group, names) for index in (0, -1))
        keys = ("total", *map(str, classes))
        total, *rows = [[_cell(run, a.get(k), b.get(k)) for a, b in zip(old, new, strict=True)] for k in keys]
        parts.append({"group": group, "total": total, "rows": list(zip(map(str, classes), rows, strict=True))})
    return {"names": [run.metric_label, *names], "groups": parts}


def _columns(run: RunRecord, index: int, group: str, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The run's own score and each figure of a group at one moment, as {"total": ..., class: ...}."""
    moment, found = run.moments[index], run.details[index].get(group, {"figures": {}})["figures"]
    own = {**moment.per_class, "total": moment.scores.get(group)}
    return [own, *(found.get(name, {}) for name in names)]


def _cell(run: RunRecord, before: Any, after: Any) -> str:
    old, new = (NONE if finite(v) is None else f"{v:.1f}" for v in (before, after))
    return f"{old} → {new}" if len(run.details) > 1 and {old, new} != {NONE} else old


def curves(run: RunRecord) -> list[Plot]:
    """A chart per group: the curve of each class before the run (dashed) and after its last phase."""
    if not run.details:
        return []
    plots = []
    for group in run.groups:
        both = [moment.get(group, {}).get("curves", {}) for moment in (run.details[0], run.details[-1])]
        both = both if len(run.details) > 1 else both[:1]
        shown, left_out = _chosen(both)
        if not shown:
            continue
        lines, legend = [], []
        for number, name in enumerate(shown):
            hue = 360 * number / len(shown) + 10
            legend.append((name, hue, ""))
            for found, dash in zip(both, (BEFORE, AFTER), strict=False):
                if name in found:
                    lines.append(Line(name, hue, _points(found[name]), dash=dash))
        x, y = run.curve_axes
        title = f"{group}: {left_out} more classes changed less" if left_out else group
        plots.append(Plot(title, chart(lines, Axes(x, y, (0, 1), title=f"{y} over {x}: {group}")), legend))
    return plots


def _points(values: Sequence[Any]) -> list[tuple[float, float | None]]:
    return [(i / max(1, len(values) - 1), finite(y)) for i, y in enumerate(values)]


def _chosen(both: Sequence[Mapping[str, Sequence[float]]]) -> tuple[list[str], int]:
    """The classes that fit into one chart, in order, and how many are left out."""
    names = list(dict.fromkeys(name for found in both for name in found))

    def change(name: str) -> float:
        areas = [sum(y for y in found.get(name, ()) if finite(y) is not None) for found in both]
        return -abs(areas[-1] - areas[0])

    kept = set(sorted(names, key=change)[:SHOWN])
    return [name for name in names if name in kept], len(names) - len(kept)
