"""Class-incremental learning of photographs, 25 classes and then five times 5: the runs behind the README's table.

python image-classification/runs/incremental.py --images FOLDER --output-dir results/methods --seeds 0,1,2

FOLDER holds tinyimagenet50/ (train/<class>/, test/<class>/) and mobilenet_v2_imagenet1k.pth.
"""

import sys
from itertools import product
from pathlib import Path

from methods import PLANS, SETTINGS, carried_out, prepared
from methods_table import Row

from common import cli
from common.config import Parser, help_formatter
from common.errors import UserError
from common.evaluation.run_measures import history_of, learn_measures
from common.plan import from_record, read_plan
from common.record import read_json, write_json
from common.report.runs import read_run
from common.report.table import mean_std

PLAN = PLANS / "photos_25_5x5.yaml"
NAMES = {
    "average": "average ↑",
    "last": "last ↑",
    "forgetting": "forgetting ↓",
    "backward_transfer": "backward transfer ↑",
}
STEPS = 250  # of a phase: four times over its 2,000 images
MEMORY = "--exemplars 20"
ROWS = {
    "joint": "--method finetune --lr 3e-4 --keep-weight 7 --steps 500",
    "icarl": f"--method icarl --lr 3e-4 {MEMORY}",
    "lucir": f"--method lucir --lr 3e-4 {MEMORY}",
    "der_pp, memory": f"--method der_pp --trains all --lr 3e-4 {MEMORY}",
    "lwf, memory": f"--method lwf --trains all --lr 3e-4 {MEMORY}",
    "ewc, memory": f"--method ewc --trains all --lr 3e-4 {MEMORY}",
    "lwf": "--method lwf --trains all --no-rehearse --lr 3e-4",
    "ewc": "--method ewc --trains all --no-rehearse --importance-from target --lr 3e-4",
    "finetune": "--method finetune --keep-weight 0 --lr 3e-4",
}


def main(argv: list[str]) -> None:
    """Pretrains the first task, runs the methods, writes the JSON and prints the table."""
    parser = Parser(prog="incremental.py", description=__doc__, formatter_class=help_formatter)
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
    first = read_plan(PLAN, sorted(p.name for p in (folder / "train").iterdir())).groups["task1"]
    common = (
        prepared(SETTINGS["photos"], args.images, out, "base25", ",".join(first)) + f" --plan {PLAN} --steps {STEPS}"
    )
    rows = []
    for seed, name in product(args.seeds.split(","), args.rows.split(";")):
        place = out / "incremental" / name.replace(", ", "-") / f"seed{seed}"
        if carried_out(f"{common} {ROWS[name]} --seed {seed} --output-dir {place}".split(), place):
            rows.append(row_of(place, name))
    if args.json:
        write_json(Path(args.json), rows)
    print(markdown(rows))


def row_of(folder: Path, name: str) -> Row:
    """One run in figures: accuracy of everything seen so far after each task, and LibContinual's measures at the end."""
    run = read_run(folder)
    plan, history = from_record(run.identity["plan"]), history_of(run.lines)
    after = [learn_measures(plan, history, phase.index) for phase in plan.phases]
    return {
        "row": name, "flags": ROWS[name], "seed": run.train["seed"], "history": history, "seen": [m["last"] for m in after],
        **{key: after[-1][key] for key in NAMES}, "seconds": round(run.done["seconds"], 1),
        "extra_mib": read_json(folder / "memory.json")["extra_mib"],
    }  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """The table, in the order of the rows; ± is the sample standard deviation over seeds."""
    head = f"| | seeds | {' | '.join(NAMES.values())} | time (s) |"
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [mean_std([row[key] for row in own]) for key in NAMES]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {mean_std([r['seconds'] for r in own], 0)} |")
    return "\n".join([head, "|---|" + "---:|" * (len(NAMES) + 2), *lines])


if __name__ == "__main__":
    sys.exit(cli.main(main))
