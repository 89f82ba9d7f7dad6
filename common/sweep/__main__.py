"""`python -m common.sweep FILE.yaml`: carries out the rows of a sweep and writes one table over them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from common.cli import main
from common.config import Parser, add_flags, from_values, help_formatter
from common.errors import UserError
from common.knobs import check
from common.lazy import Module
from common.record import write_json, write_text
from common.report.columns import USUAL
from common.report.curves import draw_scores
from common.report.page import render
from common.report.runs import read_run, summary
from common.report.table import csv_text, duration, markdown, tables
from common.schema import read_json
from common.sweep import engines, tuning
from common.sweep.rows import Row, Sweep, read_sweep

flags = Module("common.sweep.check")  # with torch, which takes seconds

HELP = """Carries out every row of a sweep: one command with every combination of the flags under `grid` and `zip`.
Each row is a run in a folder of its own. The same command skips what is done and goes on with what was stopped or
killed; the finished rows make report.html, table.md, table.csv, scores.svg and figures.json. Exit code 1 where a row
failed.

  output_dir: results/orders                    folder of the rows
  command: image-classification swap            a script of this repository, or a module and its verb
  flags: --data digits --checkpoint $out/base --learn 6,7 --forget 0,1
  prepare: image-classification pretrain --data digits --classes 0,1,2,3,4,5,8,9 --output-dir $out/base
  grid:                                         every combination; a list of values, or names with flags
    method: {gs_lora: --method gs_lora --lr 1e-2, finetune: --method finetune}
    order: [fltf, fftl]
    seed: [0, 1, 2]                             a table has the mean and the spread over seeds

Also: `zip` (lists of equal length that vary together), `set` (values of $name; --set replaces them), `extends` (other
sweep files), `only` (as --only), `columns` (of the table; see common.report), and for --tune

  tune:
    flags: --seed 9 --validation 0.2            of every trial: no table's seed; scored on held-out training images
    objective: h_mean                           a column; with a minus in front it is made small
    range:                                      by pattern of the rows' names
      "*": {lr: [1.0e-4, 1.0e-2, log]}
      "gs_lora*": {bound: [2.0, 10.0]}

which prints the best flags of each row and writes them to tuned.yaml."""


def body(argv: list[str]) -> int:
    """The command; its exit code."""
    parser = Parser(prog="python -m common.sweep", description=HELP, formatter_class=help_formatter, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE.yaml", help="the sweep")
    parser.add_argument("--output-dir", default="", help="folder of the rows in the place of the file's")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="what $NAME in the file stands for")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="rows of these names, such as 'gs_lora-*'"
    )
    parser.add_argument("--flags", default="", help="further flags of every row, such as '--steps 10'")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, or the batch script, and end")
    parser.add_argument(
        "--tune", type=int, default=0, metavar="N", help="choose settings of each row in N trials (Optuna)"
    )
    add_flags(parser, engines.EngineConfig)
    args = parser.parse_args(argv)
    config = from_values(engines.EngineConfig, vars(args))
    if odd := [pair for pair in args.set if not pair.partition("=")[1]]:
        raise UserError(f"--set {odd[0]}: write NAME=VALUE.")
    check("`--tune`", args.tune, {"least": 0})
    given = dict(pair.partition("=")[::2] for pair in args.set)
    sweep = read_sweep(args.file, args.output_dir, given, args.only, args.flags)
    engine = engines.local if config.engine == "local" else engines.scheduled
    if config.engine != "local":
        engines.check_extra("submitit")
    if args.dry_run:
        print(*(row.command() for row in (*sweep.prepare, *sweep.rows)), sep="\n")
        if config.engine == "slurm":
            print(engines.sbatch(sweep.rows, config, sweep.out / "logs"))
        return 0
    flags.check_flags([*sweep.prepare, *sweep.rows])
    for row in sweep.prepare:
        if failed := carried_out([row], sweep, config, engine):
            raise UserError(f"{row.command()} failed: {failed[row.name]}")
    if args.tune:
        engines.check_extra("optuna")
        best = tuning.tune(sweep, args.tune, config.jobs, lambda rows: carried_out(rows, sweep, config, engine))
        print(*(f"{name}: {flags}" for name, flags in best.items()), sep="\n")
        return 0
    _check_commands(sweep)
    failed = carried_out(sweep.rows, sweep, config, engine)
    write_tables(sweep)
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def carried_out(
    rows: Sequence[Row], sweep: Sweep, config: engines.EngineConfig, engine: engines.Engine
) -> dict[str, str]:
    """Runs the rows that are not done and tells of each; the errors by name of the row."""
    left = [row for row in rows if not row.done]
    errors: dict[str, str] = {}
    began = time.monotonic()
    for count, (row, seconds, error) in enumerate(engine(left, config, sweep.out / "logs"), 1):
        if error:
            errors[row.name] = error
        done, pace = len(rows) - len(left) + count, (time.monotonic() - began) / count
        told = f"failed: {error}" if error else duration(seconds)
        state = f"{len(errors)} failed, about {duration(pace * (len(left) - count))} left"
        print(f"{done:>4}/{len(rows)}  {row.name:<40}  {told}  ({state})", file=sys.stderr, flush=True)
    return errors


def _check_commands(sweep: Sweep) -> None:
    """Notes the command of every row. Raises UserError where a row was carried out with another one."""
    path = sweep.out / "commands.json"
    known = read_json(path) if path.exists() else {}
    for row in sweep.rows:
        if row.done and known.get(row.name, row.command()) != row.command():
            raise UserError(
                f"{row.folder} was made by another command, {known[row.name]}; remove it or choose another --output-dir."
            )
    write_json(path, {**known, **{row.name: row.command() for row in sweep.rows}})


def write_tables(sweep: Sweep) -> None:
    """report.html, table.md, table.csv, scores.svg and figures.json over the finished rows, and the table on the screen."""
    done = [row for row in sweep.rows if row.done]
    if not done:
        return
    runs, names = [read_run(row.folder) for row in done], {row.folder: row.label for row in done}
    columns = sweep.columns or USUAL
    text, found = markdown(runs, columns, names), tables(runs, columns, names)
    write_text(sweep.out / "table.md", text)
    write_text(sweep.out / "table.csv", "\n".join(map(csv_text, found)))
    write_text(sweep.out / "scores.svg", draw_scores(found[0]))
    write_json(sweep.out / "figures.json", [summary(run) for run in runs])
    write_text(sweep.out / "report.html", render(runs, sweep.out.name, columns, names, sweep.out))
    print(f"{text}\n{len(done)} of {len(sweep.rows)} rows; page in {sweep.out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main(body))
