"""A run without a model, for tests of sweeps: claims its folder, counts steps, saves after each, goes on where it was.

python -m fake_run swap --method M --order O --lr L --seed S --output-dir F [--gate FOLDER] [--bad]

With a gate it stops at step HELD until the gate holds a file of its name or one called "all", so that a test need not
hurry to find it in the middle.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from common.errors import UserError
from common.plan import make_plan
from common.record import METRICS, Run, write_json

STEPS, HELD = 10, 5
OPEN = "open"
PLAN = (["new"], ["gone"], ["kept", "also kept"])


def score(group, method, order, lr, seed):
    """A figure that depends on the flags alone; best at lr 0.1."""
    base = {"learn": 80.0, "forget": 3.0 if method == "good" else 30.0, "retain": 90.0}[group]
    return base + seed + 2 * (order == "fftl") - 100 * abs(lr - 0.1)


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    for name, kind, default in (
        ("method", str, "good"), ("order", str, "fltf"), ("seed", int, 0), ("output-dir", str, ""), ("gate", str, OPEN),
        ("lr", float, 0.1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--bad", action="store_true")
    args = parser.parse_args(argv)
    if args.bad:
        raise UserError("this row is bad; take another.")
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(143))  # before the folder is claimed: the claim must go too
    plan, run = make_plan(args.order, *PLAN), Run(args.output_dir)
    train = {"method": args.method, "seed": args.seed, "lr": args.lr}
    phases = [{**vars(p), "title": p.title} for p in plan.phases]
    run.open({"domain": "fake", "plan": plan.record(), "train": train}, {"metric": "acc", "phases": phases}, False)
    state = Path(args.output_dir) / "count.json"
    count = json.loads(state.read_text()) if state.exists() else {"steps": 0, "starts": 0}
    count["starts"] += 1
    write_json(state, count)
    while count["steps"] < STEPS and not ended:
        if count["steps"] == HELD and closed(args.gate, args.output_dir):
            time.sleep(0.01)
            continue
        count["steps"] += 1
        write_json(state, count)
    if not ended:
        finish(run, plan, args)
    run.close()
    return ended[0] if ended else 0


def closed(gate, folder):
    return gate != OPEN and not any((Path(gate) / name).exists() for name in ("all", Path(folder).name))


def finish(run, plan, args):
    lines = []
    for phase in (None, *plan.phases):
        index = phase.index if phase else 0
        for group in plan.groups:
            before = 0.0 if group == "learn" else 95.0
            value = score(group, args.method, args.order, args.lr, args.seed) if index == len(plan.phases) else before
            lines.append({"phase": index, "step": 1, "end": True, "group": group, "score": value, "per_class": {}})
    h_mean = score("retain", args.method, args.order, args.lr, args.seed)
    run.append(METRICS, [*lines, {"phase": 2, "measures": {"h_mean": h_mean}}])
    write_json(run.path("done.json"), {"seconds": 1.0, "cpu_seconds": 1.0, "peak_memory": 2**20})


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"phase 1: step 1/2\nerror: {error}", file=sys.stderr)
        sys.exit(2)
