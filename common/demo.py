"""The demonstration of a domain: a base model, swaps in both orders, a proof, one report that compares them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from common import cli, commands, report
from common.config import Parser, help_formatter
from common.errors import UserError
from common.evaluation.prove import ProveConfig
from common.evaluation.retrained import References
from common.plan import ORDERS
from common.session import Session
from common.splits import read_list
from common.sweep.engines import EngineConfig, Task
from common.sweep.rows import Row

AS_PUBLISHED = "--method gs_lora --no-keep-until-forgotten --guard none"  # Knowledge Swapping, arXiv:2502.08075


class Demo(NamedTuple):
    """What a demonstration runs.

    about:    what it shows, for --help; title: of its page.
    pretrain: flags that train the base model; swap: flags of every swap.
    weights:  a base model that lies ready; None trains one for every seed.
    proof:    flags of `prove` for the first run; "" proves nothing. Its references are trained beside everything else.
    """

    about: str
    title: str
    pretrain: str
    swap: str
    weights: Path | None = None
    proof: str = ""


def main(session: Session, demo: Demo, argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration from flags; the exit code."""
    return cli.main(lambda words: _run(session, demo, words), argv)


def _run(session: Session, demo: Demo, argv: list[str]) -> None:
    parser = Parser(prog="demo.py", description=demo.about, formatter_class=help_formatter)
    parser.add_argument(
        "--output-dir", default=f"results/demo-{session.name}", help="folder of the runs and of report.html"
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of repetitions of everything")
    parser.add_argument("--orders", default="fltf,fftl", help="which orders to run, comma separated")
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=True, help="start anew")
    if demo.weights:
        parser.add_argument(
            "--pretrain", action="store_true", help="train the base model instead of reading its weights"
        )
    text = "runs at a time, each with its share of the processor cores"
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help=text)
    if demo.proof:
        parser.add_argument(
            "--prove", action=argparse.BooleanOptionalAction, default=True, help="attack what the first run forgot"
        )
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"`--seeds` and `--jobs` must be at least 1, got {args.seeds} and {args.jobs}.")
    orders = read_list(args.orders)
    if not orders or set(orders) - set(ORDERS):
        raise UserError(f"`--orders {args.orders}`: name some of {', '.join(ORDERS)}.")
    folder, began = Path(args.output_dir), time.monotonic()
    proves = bool(demo.proof and args.prove)
    with _beside(_references(session, demo, folder / "base-seed0", args.overwrite) if proves else []):
        runs = _commands(session, demo, args, folder)
        _swaps(session, runs, args.jobs)
        if proves:
            print("\nWaiting for the models that never saw the forgotten classes, trained in the meantime")
    if proves:
        commands.prove(session, [str(next(iter(runs))), *shlex.split(demo.proof)])
    report.write(list(runs), folder / "report.html", title=demo.title)
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")


def _commands(session: Session, demo: Demo, args: argparse.Namespace, folder: Path) -> dict[Path, list[str]]:
    """The flags of every swap by its folder, base models trained where none lies ready."""
    again = ["--overwrite"] if args.overwrite else []
    runs: dict[Path, list[str]] = {}
    for seed in range(args.seeds):
        base = demo.weights
        if base is None or args.pretrain:
            base = folder / f"base-seed{seed}"
            print(f"Pretraining the base model (seed {seed})")
            commands.pretrain(session, _pretrain(session, demo, base, seed, *again))
        for order in read_list(args.orders):
            run = folder / f"{order}-seed{seed}"
            flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(run)]
            runs[run] = session.tidy([*shlex.split(demo.swap), *flags, *again])
    return runs


def _swaps(session: Session, runs: dict[Path, list[str]], jobs: int) -> None:
    """The runs, several at a time, each in a process of its own; what one prints is shown when it is done."""
    jobs = max(1, min(jobs, len(runs)))
    threads = ["--threads", str(max(1, (os.cpu_count() or 1) // jobs))] if jobs > 1 else []
    print(f"{len(runs)} swaps, {jobs} at a time", flush=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(_swap, session, [*flags, *threads], run) for run, flags in runs.items()]
        for run, text in zip(runs, done, strict=True):
            print(f"\n{run.name}\n{text.result()}", end="", flush=True)


def _swap(session: Session, flags: list[str], run: Path) -> str:
    """One run; what it printed."""
    run.parent.mkdir(parents=True, exist_ok=True)
    log = run.parent / f"{run.name}.log"
    with log.open("w+") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        commands.swap(session, flags)
        file.seek(0)
        return file.read()


def _pretrain(session: Session, demo: Demo, base: Path, seed: int, *more: str) -> list[str]:
    """The flags that train a base model."""
    flags = ["--seed", str(seed), "--output-dir", str(base), "--no-report", *more]
    return session.tidy([*shlex.split(demo.pretrain), *flags])


def _references(session: Session, demo: Demo, base: Path, anew: bool) -> list[Row]:
    """The commands that train what the proof compares with, where the proof will look for it."""
    flags = commands.parsed(session, "pretrain", _pretrain(session, demo, base, 0)).flags
    asked = commands.parsed(session, "swap", session.tidy(shlex.split(demo.swap))).flags
    learned, forgotten = read_list(asked["learn"]), read_list(asked["forget"])
    classes = [*(c for c in read_list(flags["classes"]) if c not in forgotten), *learned]
    base.mkdir(parents=True, exist_ok=True)
    found = References(session, flags, classes, base, base)
    if anew:
        shutil.rmtree(found.place, ignore_errors=True)
    return found.rows(ProveConfig.references)


@contextlib.contextmanager
def _beside(rows: Sequence[Row]) -> Iterator[None]:
    """Inside, the rows are carried out one after the other on another core; waits for them at the end."""
    tasks = [Task(row, EngineConfig(), row.folder.with_suffix(".txt"), threads=1) for row in rows]
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(task) for task in tasks]
        try:
            yield
        except BaseException:
            for task in tasks:
                task.stop()
            raise
    if errors := [error for future in found if (error := future.result())]:
        raise UserError(f"a model to compare with could not be trained: {errors[0]}")
