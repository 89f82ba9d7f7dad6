"""The demonstration of a domain: a base model, swaps in both orders, one report that compares them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from common import cli, commands, report
from common.config import Parser, help_formatter
from common.session import Session
from common.splits import read_list

AS_PUBLISHED = "--method gs_lora --no-keep-until-forgotten --guard none"  # Knowledge Swapping, arXiv:2502.08075


class Demo(NamedTuple):
    """What a demonstration runs.

    about:    what it shows, for --help; title: of its page.
    pretrain: flags that train the base model; swap: flags of every swap.
    weights:  a base model that lies ready; None trains one for every seed.
    """

    about: str
    title: str
    pretrain: str
    swap: str
    weights: Path | None = None


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
    args = parser.parse_args(argv)
    folder, began = Path(args.output_dir), time.monotonic()
    again = ["--overwrite"] if args.overwrite else []
    runs: dict[Path, list[str]] = {}
    for seed in range(args.seeds):
        base = demo.weights
        if base is None or args.pretrain:
            base = folder / f"base-seed{seed}"
            print(f"Pretraining the base model (seed {seed})")
            flags = ["--seed", str(seed), "--output-dir", str(base), "--no-report", *again]
            commands.pretrain(session, session.tidy([*shlex.split(demo.pretrain), *flags]))
        for order in read_list(args.orders):
            run = folder / f"{order}-seed{seed}"
            flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(run)]
            runs[run] = session.tidy([*shlex.split(demo.swap), *flags, *again])
    _swaps(session, runs, args.jobs)
    report.write(list(runs), folder / "report.html", title=demo.title)
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")


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
