"""Rows and tables of `methods.py`: python image-classification/runs/methods_table.py FILE.json ..."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import cli
from common.errors import UserError
from common.evaluation.run_measures import forget_measures, history_of
from common.plan import from_record
from common.record import read_json
from common.report.runs import RunRecord, read_run
from common.report.table import mean_std

Row = dict[str, Any]
HEAD = (
    "| method | seeds | forgotten ↓ | retained ↑ | H ↑ | gap to Retrain ↓ | trains (%) | memory (MiB) | CPU time (s) |"
)


def row_of(folder: Path) -> Row:
    """One finished run in figures.

    phases: Acc_f, Acc_r, Acc_o, drop and H-mean after each forget phase; forgotten: accuracy, at the end, of all
    that was ever forgotten; retained: of all that is left.
    """
    run = read_run(folder)
    plan, history = from_record(run.identity["plan"]), history_of(run.lines)
    phases = [forget_measures(plan, history, phase.index) for phase in plan.phases]
    gone = {g for phase in plan.phases for g in phase.groups}
    return {
        "method": run.method, "seed": run.train["seed"], "before": history[0], "after": history[-1], "phases": phases,
        "forgotten": run.pooled([g for g in plan.groups if g in gone], run.moments[-1]),
        "retained": run.pooled([g for g in plan.groups if g not in gone], run.moments[-1]),
        "h_mean": statistics.fmean(phase["h_mean"] for phase in phases),
        "parameters": run.config["parameters"], **cost_of(run),
    }  # fmt: skip


def cost_of(run: RunRecord) -> Row:
    """CPU seconds of the run, evaluation included, and by how many MiB the process grew."""
    return read_json(run.folder / "cost.json")


def markdown(rows: list[Row]) -> str:
    """The table of several methods, best H-mean first; ± is the sample standard deviation over seeds.

    The gap to Retrain is the mean of the distances of forgotten and retained accuracy from Retrain's means.
    """
    methods = {row["method"]: [r for r in rows if r["method"] == row["method"]] for row in rows}
    goal = methods.get("retrain")
    lines = []
    for name, own in methods.items():

        def of(key: str, own: list[Row] = own) -> list[float]:
            return [row[key] for row in own]

        def cost(key: str, own: list[Row] = own) -> str:
            known = [row[key] for row in own if key in row]  # a row of an earlier machine may have none
            return f"{statistics.fmean(known):.0f}" if known else "–"

        gap = "–"
        if goal:
            apart = [
                abs(statistics.fmean(of(k)) - statistics.fmean(r[k] for r in goal)) for k in ("forgotten", "retained")
            ]
            gap = f"{statistics.fmean(apart):.1f}"
        share = 100 * own[0]["parameters"]["trainable"] / own[0]["parameters"]["total"]
        lines.append((statistics.fmean(of("h_mean")), f"| `{name}` | {len(own)} | {mean_std(of('forgotten'))} | "
                      f"{mean_std(of('retained'))} | {mean_std(of('h_mean'))} | {gap} | {share:.1f} | "
                      f"{cost('extra_mib')} | {cost('cpu_seconds')} |"))  # fmt: skip
    return "\n".join([HEAD, "|---|" + "---:|" * 8, *(line for _, line in sorted(lines, reverse=True))])


def main(argv: list[str]) -> None:
    """Prints the table of each file that methods.py wrote."""
    if not argv:
        raise UserError(
            "name the JSON files that methods.py wrote, such as image-classification/runs/methods_photos_single.json."
        )
    for path in argv:
        found = json.loads(Path(path).read_text())
        print(f"{found['setting']}, {found['table']}", markdown(found["rows"]), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    sys.exit(cli.main(main))
