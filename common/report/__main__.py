"""`python -m common.report RESULTS…`: a Markdown table over many runs, and a page that compares them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import main
from common.config import Parser
from common.record import write_json, write_text
from common.report.columns import COLUMNS
from common.report.forms import consistent
from common.report.page import render
from common.report.runs import find_runs, summary
from common.report.table import markdown

HELP = """Prints a Markdown table over runs: scores of every group before and after, drop, H-mean, trainable
parameters, time and memory. Runs that differ only in the seed share a row, as mean ± standard deviation.

  python -m common.report results                        every run below results/
  python -m common.report results/classification/fltf*   some of them
  python -m common.report results --html compare.html    also one page with plots and pictures

A single run writes its own page, report.html in its folder, when it ends. A run that is still going on or was
stopped can be looked at with --html too; the page says how far it came."""


def body(argv: list[str]) -> int:
    """Prints the table, writes the page where asked for; the exit code."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m common.report", description=HELP, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="run folders, or folders that hold runs")
    parser.add_argument("--html", default="", metavar="FILE", help="also write a self-contained page there")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures behind the table there")
    parser.add_argument(
        "--title", default="", help="heading of the page; default what the run was told, or how many are compared"
    )
    text = f"measures in the place of the scores, comma separated: {', '.join(COLUMNS)}, or names of groups"
    parser.add_argument("--columns", default="", metavar="A,B", help=text)
    args = parser.parse_args(argv)
    runs, columns = find_runs(args.results), args.columns.split(",") if args.columns else []
    with consistent(", ".join(args.results)):
        table, figures = markdown(runs, columns), [summary(run) for run in runs]
        page = render(runs, args.title, columns, place=Path(args.html).parent) if args.html else ""
    print(table, end="")
    if args.json:
        write_json(Path(args.json), figures)
    if args.html:
        write_text(Path(args.html), page)
        print(f"page in {args.html}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(body))
