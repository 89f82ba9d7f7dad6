"""The demonstration of a domain: a base model, swaps in both orders, one report that compares them."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
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
    args = parser.parse_args(argv)
    folder, began = Path(args.output_dir), time.monotonic()
    again = ["--overwrite"] if args.overwrite else []
    runs: list[Path] = []
    for seed in range(args.seeds):
        base = demo.weights
        if base is None or args.pretrain:
            base = folder / f"base-seed{seed}"
            print(f"Pretraining the base model (seed {seed})")
            flags = ["--seed", str(seed), "--output-dir", str(base), "--no-report", *again]
            commands.pretrain(session, session.tidy([*shlex.split(demo.pretrain), *flags]))
        for order in read_list(args.orders):
            print(f"\n{order}, seed {seed}")
            runs.append(folder / f"{order}-seed{seed}")
            flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(runs[-1])]
            commands.swap(session, session.tidy([*shlex.split(demo.swap), *flags, *again]))
    report.write(runs, folder / "report.html", title=demo.title)
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")
