"""Run folders -> one self-contained HTML page, or a Markdown table (`python -m common.report --help`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.record import write_text
from common.report.page import render
from common.report.runs import read_run


def write(folders: Sequence[str | Path], path: str | Path, title: str = "") -> Path:
    """Writes the page of these run folders, finished or not, and returns its path.

    Raises:
        UserError: a folder is no run.
    """
    path = Path(path)
    write_text(path, render([read_run(folder) for folder in folders], title, place=path.parent))
    return path
