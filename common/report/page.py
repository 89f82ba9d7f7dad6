"""The HTML page: one file with everything in it, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.report import plots, sections, verdict, words
from common.report.runs import RunRecord
from common.report.table import FOOTNOTE, NO_NAMES, Names, Table, tables
from common.report.templates import style, template


def render(runs: Sequence[RunRecord], title: str = "", columns: Sequence[str] = (), names: Names = NO_NAMES,
           place: Path | None = None) -> str:  # fmt: skip
    """The page of one run, or of several: their table first (see `tables`), then each set of seeds with its first run.

    place: the folder that the page will lie in, for links to other pages; by default that of the run.
    """
    found = tables(runs, columns, names)
    shown = [(row[0], members[0]) for table in found for row, members in zip(table.rows, table.sets, strict=True)]
    called, firsts = [name for name, _ in shown], [run for _, run in shown]
    several = len(firsts) > 1
    top = _most_moved(firsts) if several else None
    return template("page.html").render(
        title=title or (f"{len(firsts)} knowledge swaps compared" if several else words.title(firsts[0])),
        orders=words.orders(firsts) if several else [],
        fronts=_fronts(found) if several else [],
        tables=found if len(runs) > 1 else [],
        footnote="" if columns else FOOTNOTE,
        rules=verdict.RULES,
        several=several,
        runs=len(runs),
        sections=[sections.section(run, name, top, place) for name, run in shown],
        shared=sections.shared_pictures(firsts, called) if several else [],
        style=style(),
    )


def _fronts(found: Sequence[Table]) -> list[plots.Plot]:
    """What the runs of each table forgot against what they retained and learned; every seed has its dot."""
    every = [
        [(row[0], run) for row, members in zip(table.rows, table.sets, strict=True) for run in members]
        for table in found
    ]
    return [plot for pairs in every for plot in plots.fronts([run for _, run in pairs], [name for name, _ in pairs])]


def _most_moved(runs: Sequence[RunRecord]) -> float | None:
    """A little above the farthest that any phase of any run moved a block; None without adapters."""
    moved = [m for run in runs for line in run.adapters for m in line.get("adapter_moved", {}).values()]
    return 1.05 * max(moved) if moved and max(moved) > 0 else None
