"""Continual unlearning of photographs with both reference runs: the runs behind the README's table.

python image-classification/runs/unlearning.py --images FOLDER --output-dir results/methods --seeds 0,1,2

25 classes are known; four tasks of 5 are learned, the first is unlearned after the second and the third after the
fourth. Each row is one command, swap.py --plan photos_unlearning.yaml --with-references. FOLDER holds tinyimagenet50/
and mobilenet_v2_imagenet1k.pth.
"""

import sys
from itertools import product
from pathlib import Path

from methods import PLANS, SETTINGS, carried_out, prepared
from methods_table import Row

from common import cli
from common.config import Parser, help_formatter
from common.errors import UserError
from common.evaluation.run_measures import history_of, standing
from common.plan import from_record, read_plan
from common.record import read_json, write_json
from common.report.runs import read_run
from common.report.table import mean_std

PLAN = PLANS / "photos_unlearning.yaml"
COLUMNS = {
    "forgotten": "unlearned (%) ↓", "known": "known before (%) ↑", "kept": "learned and kept (%) ↑",
    "distance_unlearned": "distance, unlearned ↓", "distance_remaining": "distance, rest ↓", "gap": "accuracy gap, rest ↑",
}  # fmt: skip
STEPS = 150  # of a phase
ROWS = {
    "amnesiac": "--method amnesiac --lr 3e-4",
    "amnesiac_lwf": "--method amnesiac_lwf --lr 3e-4",
    "amnesiac_ewc": "--method amnesiac_ewc --lr 3e-4",
    "amnesiac_der": "--method amnesiac_der --lr 3e-4",
    "amnesiac_der_pp": "--method amnesiac_der_pp --lr 3e-4",
    "amnesiac_lwf, adapter": "--method amnesiac_lwf --trains adapter --lr 5e-3",
    "gs_lora": "--method gs_lora --lr 1e-2 --forget-weight 0.5",
    "finetune": "--method finetune --lr 3e-4",
}


def main(argv: list[str]) -> None:
    """Pretrains the known classes, runs the methods, writes the JSON and prints the table."""
    parser = Parser(prog="unlearning.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--rows", default=";".join(ROWS), help="some rows only, separated by ;")
    parser.add_argument("--output-dir", default="results/methods", help="folder of the runs")
    parser.add_argument("--json", default="", help="also write the rows here")
    args = parser.parse_args(argv)
    if not (folder := Path(args.images) / "tinyimagenet50").is_dir():
        raise UserError(f"`--images` must be a folder that holds tinyimagenet50, got {args.images}.")
    if unknown := [name for name in args.rows.split(";") if name not in ROWS]:
        raise UserError(f"`--rows`: no row {unknown[0]!r}; there are: {'; '.join(ROWS)}.")
    out = Path(args.output_dir) / "photos"
    known = read_plan(PLAN, sorted(p.name for p in (folder / "train").iterdir())).groups["known"]
    common = prepared(SETTINGS["photos"], args.images, out, "base25", ",".join(known))
    common += f" --plan {PLAN} --with-references --steps {STEPS}"
    rows = []
    for seed, name in product(args.seeds.split(","), args.rows.split(";")):
        place = out / "unlearning" / name.replace(", ", "-") / f"seed{seed}"
        if carried_out(f"{common} {ROWS[name]} --seed {seed} --output-dir {place}".split(), place):
            rows.append(row_of(place, name))
    if args.json:
        write_json(Path(args.json), rows)
    print(markdown(rows))


def row_of(folder: Path, name: str) -> Row:
    """One run in figures: accuracies at the end, and CLArena's two measures against the reference runs."""
    run, references = read_run(folder), read_json(folder / "references.json")
    plan = from_record(run.identity["plan"])
    gone, end = standing(plan, len(plan.steps), "forget"), run.moments[-1]
    kept = [g for g in plan.learned_groups if g not in gone]
    return {
        "row": name, "flags": ROWS[name], "seed": run.train["seed"], "history": history_of(run.lines),
        "forgotten": run.pooled(gone, end), "known": run.pooled(["known"], end), "kept": run.pooled(kept, end),
        "distance_unlearned": references["distance"]["unlearned"], "gap": references["gap"]["mean"],
        "distance_remaining": references["distance"]["remaining"], "references": references,
        "seconds": round(run.done["seconds"], 1), "extra_mib": read_json(folder / "memory.json")["extra_mib"],
    }  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """The table, in the order of the rows; ± is the sample standard deviation over seeds."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [mean_std([row[key] for row in own], 3 if "distance" in key else 1) for key in COLUMNS]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join([f"| | seeds | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (len(COLUMNS) + 1), *lines])


if __name__ == "__main__":
    sys.exit(cli.main(main))
