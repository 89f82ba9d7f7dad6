"""The demonstration of a domain: a base model, swaps in both orders, a proof, one report that compares them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from multiprocessing import connection, get_all_start_methods, get_context
from pathlib import Path
from typing import NamedTuple

from common import cli, commands, report
from common.config import Parser, help_formatter
from common.errors import UserError
from common.evaluation.retrained import COUNT, References
from common.plan import ORDERS
from common.session import Session
from common.splits import read_list
from common.state import Interrupted, Stop
from common.sweep.engines import POLL, first_error
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


class Job(NamedTuple):
    """One command, in a process of its own that prints into a file.

    needs: names of the jobs that must be done before.
    """

    name: str
    verb: str
    words: Sequence[str]
    log: Path
    needs: Sequence[str] = ()


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
    carry_out(session, jobs, args.jobs, demo.imports)
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
        base = folder / f"base-seed{seed}" if made else demo.weights
        if made:
            bases.append(_job(base, "pretrain", _pretrain(session, demo, base, seed, *again)))
        for order in orders:
            run = folder / f"{order}-seed{seed}"
            flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(run)]
            words = session.tidy([*shlex.split(demo.swap), *flags, *again, *threads])
            swaps.append((run, _job(run, "swap", words, *([base.name] if made else []))))
    jobs, first = [*bases, *(job for _, job in swaps)], swaps[0][0]
    if proves:
        rows = _references(session, demo, folder / "base-seed0", args.overwrite)
        references = [_job(row.folder, "pretrain", row.words[3:]) for row in rows if not row.done]
        proof = _job(first / "proof", "prove", [str(first), *shlex.split(demo.proof)])
        jobs += [*references, proof._replace(needs=(first.name, *(job.name for job in references)))]
    return jobs, [run for run, _ in swaps]


def _job(folder: Path, verb: str, words: Sequence[str], *needs: str) -> Job:
    return Job(folder.name, verb, words, folder.with_suffix(".log"), needs)


def carry_out(session: Session, jobs: Sequence[Job], most: int, imports: Sequence[str] = ()) -> None:
    """Runs jobs, `most` at a time, the first that can be begun first; shows what each printed when it is done.

    Raises:
        UserError: one of them failed; the others are stopped, as by a signal, with their states saved.
    """
    forks = "forkserver" in get_all_start_methods()
    context = get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(list(imports))
    left, done, running, stop = list(jobs), set(), {}, Stop()
    try:
        with stop.listening():
            while left or running:
                for job in [job for job in left if done.issuperset(job.needs)][: most - len(running)]:
                    left.remove(job)
                    print(f"{job.verb} {job.name}: begins", flush=True)
                    process = context.Process(target=_run_job, args=(session, job))
                    process.start()
                    running[process.sentinel] = process, job
                for sentinel in connection.wait(list(running), POLL):
                    process, job = running.pop(sentinel)
                    process.join()
                    if process.exitcode:
                        raise UserError(f"{job.verb} {job.name}: {first_error(job.log, process.exitcode)}")
                    done.add(job.name)
                    print(f"\n{job.verb} {job.name}\n{job.log.read_text()}", flush=True)
                if stop.asked:
                    raise Interrupted("stopped; with --no-overwrite the same command goes on from there.", stop.code)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _run_job(session: Session, job: Job) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = commands.main(session, job.verb, job.words)
    sys.exit(code)


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
    return found.rows(COUNT)
