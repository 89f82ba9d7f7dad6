"""What incremental.py and unlearning.py share: a base model of the first classes, a run per row and seed, a table."""

import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from methods import PLANS, SETTINGS, carried_out, prepared
from methods_table import Row

from common.config import Parser, help_formatter
from common.errors import UserError
from common.plan_file import read_plan
from common.record import write_json
from common.report.table import mean_std


def tabulate(
    argv: list[str], text: str, plan: str, known: str, flags: str, rows: Mapping[str, str],
    row_of: Callable[[Path], Row], columns: Mapping[str, tuple[str, int]],
) -> None:  # fmt: skip
    """Pretrains the classes that are known before, runs the rows, writes the JSON and prints the table.

    Args:
        text: the script's own docstring, for --help.
        plan: file in configs/plans; known: its group that the base model is trained on.
        flags: of every run; rows: name -> its own flags.
        row_of: folder of a finished run -> figures; columns: key of a figure -> (heading, digits).
    """
    parser = Parser(prog=Path(sys.argv[0]).name, description=text, formatter_class=help_formatter)
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--rows", default=";".join(rows), help="some rows only, separated by ;")
    parser.add_argument("--output-dir", default="results/methods", help="folder of the runs")
    parser.add_argument("--json", default="", help="also write the rows here")
    args = parser.parse_args(argv)
    if not (folder := Path(args.images) / "tinyimagenet50").is_dir():
        raise UserError(f"`--images` must be a folder that holds tinyimagenet50, got {args.images}.")
    if unknown := [name for name in args.rows.split(";") if name not in rows]:
        raise UserError(f"`--rows`: no row {unknown[0]!r}; there are: {'; '.join(rows)}.")
    out, file = Path(args.output_dir) / "photos", PLANS / f"{plan}.yaml"
    first = read_plan(file, sorted(p.name for p in (folder / "train").iterdir())).groups[known]
    common = prepared(SETTINGS["photos"], args.images, out, f"base{len(first)}", ",".join(first))
    common += f" --retain-fraction 1 --plan {file} {flags}"
    found = []
    for seed, name in product(args.seeds.split(","), args.rows.split(";")):
        place = out / plan / name.replace(", ", "-") / f"seed{seed}"
        if carried_out(
            f"{common} --guard none --method {rows[name]} --seed {seed} --output-dir {place}".split(), place
        ):
            found.append({"row": name, "flags": rows[name], "seed": int(seed), **row_of(place)})
    if args.json:
        write_json(Path(args.json), found)
    print(markdown(found, columns))


def markdown(rows: list[Row], columns: Mapping[str, tuple[str, int]]) -> str:
    """The table, in the order of the rows; ± is the sample standard deviation over seeds."""
    lines = [
        f"| | seeds | {' | '.join(heading for heading, _ in columns.values())} |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [mean_std([row[key] for row in own], digits) for key, (_, digits) in columns.items()]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)
