"""The HTML page: one file with everything in it, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.report import sections, verdict
from common.report.runs import RunRecord
from common.report.table import FOOTNOTE, Table, tables

HERE = Path(__file__).parent


def render(runs: Sequence[RunRecord], title: str = "") -> str:
    """The page of one run, or of several: their table first, then each set of seeds with its first run."""
    import jinja2
    from markupsafe import Markup

    found = tables(runs)
    shown = [(row[0], members[0]) for table in found for row, members in zip(table.rows, table.sets, strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title or heading(found), tables=found if len(runs) > 1 else [], footnote=FOOTNOTE, rules=verdict.RULES,
        sections=[sections.section(run, name) for name, run in shown], style=Markup((HERE / "style.css").read_text()),
    )  # fmt: skip


def heading(found: Sequence[Table]) -> str:
    """'fltf · gs_lora', or the rows' names joined; a count where they are many."""
    names = [row[0] for table in found for row in table.rows]
    if len(names) > 3:
        return f"{len(names)} knowledge swaps compared"
    return "Knowledge swapping: " + ", ".join(names)
