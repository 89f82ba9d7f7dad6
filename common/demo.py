"""The demonstration of a domain: a base model, swaps in both orders, a proof, one report that compares them."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import cli, commands, report
from common.config import Parser, help_formatter
from common.errors import UserError
from common.evaluation.retrained import COUNT, References
from common.jobs import Job, carry_out
from common.plan import ORDERS
from common.run_flags import parsed
from common.session import Session
from common.splits import read_list
from common.sweep.rows import Row

AS_PUBLISHED = "--method gs_lora --no-keep-until-forgotten --guard none"  # Knowledge Swapping, arXiv:2502.08075


class Demo(NamedTuple):
    """What a demonstration runs.

    about:    what it shows, for --help; title: of its page.
    pretrain: flags that train the base model; swap: flags of every swap.
    weights:  a base model that lies ready; None trains one for every seed.
    proof:    flags of `prove` for the first run; "" proves nothing.
    imports:  modules that its commands need; imported once for all of them where processes can be forked.
    """

    about: str
    title: str
    pretrain: str
    swap: str
    weights: Path | None = None
    proof: str = ""
    imports: Sequence[str] = ()


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
    text = "commands at a time, each with its share of the processor cores"
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
    jobs, runs = _jobs(session, demo, args, folder)
    carry_out(jobs, args.jobs, _begins, _ends, demo.imports)
    report.write(runs, folder / "report.html", title=demo.title)
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")


def _jobs(session: Session, demo: Demo, args: argparse.Namespace, folder: Path) -> tuple[list[Job], list[Path]]:
    """(everything that is to be done, most urgent first; the folders of the swaps).

    Base models are trained where none lies ready. The references of the proof are trained on cores that wait.
    """
    again = ["--overwrite"] if args.overwrite else []
    orders, made = read_list(args.orders), demo.weights is None or args.pretrain
    proves, together = bool(demo.proof and args.prove), min(args.jobs, args.seeds * len(orders))
    threads = ["--threads", str(max(1, (os.cpu_count() or 1) // together))] if together > 1 else []
    bases, swaps = [], []
    for seed in range(args.seeds):
        base = demo.weights
        if base is None or args.pretrain:
            base = folder / f"base-seed{seed}"
            bases.append(_job(session, "pretrain", base, _pretrain(session, demo, base, seed, *again)))
        for order in orders:
            run = folder / f"{order}-seed{seed}"
            flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(run)]
            words = session.tidy([*shlex.split(demo.swap), *flags, *again, *threads])
            swaps.append((run, _job(session, "swap", run, words, *([bases[-1].name] if made else []))))
    jobs, first = [*bases, *(job for _, job in swaps)], swaps[0][0]
    if proves:
        rows = _references(session, demo, folder / "base-seed0", args.overwrite)
        references = [_job(session, "pretrain", row.folder, row.words[3:]) for row in rows if not row.done]
        needs = [swaps[0][1].name, *(job.name for job in references)]
        jobs += [*references, _job(session, "prove", first / "proof", [str(first), *shlex.split(demo.proof)], *needs)]
    return jobs, [run for run, _ in swaps]


def _job(session: Session, verb: str, folder: Path, words: Sequence[str], *needs: str) -> Job:
    return Job(f"{verb} {folder.name}", partial(commands.main, session, verb, words), folder.with_suffix(".log"), needs)


def _begins(job: Job) -> None:
    print(f"{job.name}: begins", flush=True)


def _ends(job: Job) -> None:
    print(f"\n{job.name}\n{job.log.read_text()}", flush=True)


def _pretrain(session: Session, demo: Demo, base: Path, seed: int, *more: str) -> list[str]:
    """The flags that train a base model."""
    flags = ["--seed", str(seed), "--output-dir", str(base), "--no-report", *more]
    return session.tidy([*shlex.split(demo.pretrain), *flags])


def _references(session: Session, demo: Demo, base: Path, anew: bool) -> list[Row]:
    """The commands that train what the proof compares with, where the proof will look for it."""
    flags = parsed(session, "pretrain", _pretrain(session, demo, base, 0)).flags
    asked = parsed(session, "swap", session.tidy(shlex.split(demo.swap))).flags
    learned, forgotten = read_list(asked["learn"]), read_list(asked["forget"])
    classes = [*(c for c in read_list(flags["classes"]) if c not in forgotten), *learned]
    base.mkdir(parents=True, exist_ok=True)
    found = References(session, [flags], classes, forgotten, base, base / "proof")
    if anew:
        shutil.rmtree(found.place, ignore_errors=True)
    return [row for rows in found.rows(COUNT) for row in rows]
