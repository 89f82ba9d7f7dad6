"""Toy runs for the tests that need processes of their own: several ranks, and runs that are killed.

python toy_run.py kill SCENARIOS.json FOLDER       every scenario once undisturbed, once killed again and again
torchrun ... toy_run.py ranks SCENARIOS.json FOLDER    every scenario on all ranks
torchrun ... toy_run.py nodes SCENARIOS.json FOLDER    every scenario on all ranks, one of which is killed

A scenario is {"name", "domain", "method", "order", "settings"}; see `start`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from toy import DOMAINS, make_trainer, swap_plan

from common import cli, distributed


def start(scenario: dict[str, Any], folder: Path):
    """The trainer of a scenario, on a random model that is the same every time."""
    torch.manual_seed(0)
    kind = DOMAINS[scenario["domain"]]
    base = kind().make_model()
    domain = kind(base, per_class=6, dropout=scenario.get("dropout", 0.0))
    return make_trainer(domain, swap_plan(scenario["order"]), scenario["method"], folder, **scenario["settings"])


# ---- kills ---------------------------------------------------------------------------------------------------


class Events:
    """Counts forward passes and file operations; at number `at` it sends this process a signal."""

    def __init__(self, at: int, sent: int) -> None:
        self.count, self.at, self.sent = 0, at, sent
        for kind in DOMAINS.values():
            kind.collate = self.watched(kind.collate)
        for name in ("fsync", "replace", "open"):
            setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, function):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.sent)
            return function(*args, **kwargs)

        return call


def attempt(scenario: dict[str, Any], folder: Path, at: int, sent: int) -> int:
    """Runs in a child process; its exit status. The number of events is left in FOLDER.events."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    sys.stderr = (folder.parent / f"{folder.name}.stderr").open("a")
    sys.stdout = (folder.parent / f"{folder.name}.stdout").open("a")
    ticks = iter(range(10**9))
    time.monotonic = lambda: next(ticks)  # so that `save_every` counts steps
    events = Events(at, sent)
    code = cli.main(lambda argv: start(scenario, folder).swap() and None, [])
    Path(f"{folder}.events").write_text(str(events.count))
    sys.stderr.flush()
    os._exit(code)


def kill(scenarios: list[dict[str, Any]], folder: Path) -> None:
    start(scenarios[0], folder / "warm").swap()  # what torch imports on first use, once for all children
    for scenario in scenarios:
        name = scenario["name"]
        assert attempt(scenario, folder / f"{name}.whole", 0, 0) == 0, name
        total = int((folder / f"{name}.whole.events").read_text())
        chance, statuses = random.Random(name), []
        sent = signal.Signals[scenario.get("signal", "SIGKILL")]
        for _ in range(scenario["kills"]):
            at = chance.randrange(1, total // scenario["kills"])
            statuses.append(attempt(scenario, folder / f"{name}.killed", at, sent))
        statuses.append(attempt(scenario, folder / f"{name}.killed", 0, 0))
        (folder / f"{name}.json").write_text(json.dumps(statuses))


# ---- ranks ---------------------------------------------------------------------------------------------------


def ranks(scenarios: list[dict[str, Any]], folder: Path) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    torch.set_num_threads(1)
    reduced: dict[int, int] = {}
    wrap = distributed.wrap

    def watched(module, *args, **kwargs):
        wrapped = wrap(module, *args, **kwargs)

        def hook(state, bucket):
            reduced.update({id(p): p.numel() for p in bucket.parameters()})
            return allreduce_hook(state, bucket)

        if wrapped is not module:
            wrapped.register_comm_hook(None, hook)
        return wrapped

    distributed.wrap = watched
    for scenario in scenarios:
        trainer = start(scenario, folder / scenario["name"])
        first = {n: p.detach().clone() for n, p in trainer.model.state_dict().items()}
        reduced.clear()
        trainer.swap()
        result = {
            "first": first,
            "last": trainer.model.state_dict(),
            "metrics": trainer.observer.metrics,
            "reduced": set(reduced) == {id(p) for p in trainer.parameters},
            "optimized": {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
            == {id(p) for p in trainer.parameters},
            "trained": sorted(n for n, p in trainer.model.named_parameters() if p.requires_grad),
        }
        every = distributed.gather(result)
        if distributed.is_main():
            torch.save(every, folder / f"{scenario['name']}.pt")
    distributed.close()


def nodes(scenarios: list[dict[str, Any]], folder: Path) -> None:
    """Every scenario on all ranks. "at": [rank, K, signal] happens once, before step K: SIGKILL to the rank, or what
    schedulers send to its job."""
    for scenario in scenarios:
        trainer = start(scenario, folder / scenario["name"])
        step, sent, count = trainer._step, folder / f"{scenario['name']}.sent", iter(range(10**9))

        def watched(*args, trainer=trainer, at=scenario["at"], step=step, sent=sent, count=count):
            if (at or [])[:2] == [distributed.rank(), next(count)] and not sent.exists():
                sent.touch()
                os.kill(os.getpid() if at[2] == "SIGKILL" else int(os.environ["BATCH_PID"]), signal.Signals[at[2]])
                while not trainer.stop.asked:
                    time.sleep(0.01)
            return step(*args)

        trainer._step = watched
        trainer.swap()
    distributed.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # a killed process loses nothing that it has written; only a machine does
    body = {"kill": kill, "ranks": ranks, "nodes": nodes}[sys.argv[1]]
    sys.exit(cli.main(lambda argv: body(json.loads(Path(argv[1]).read_text()), Path(argv[2]))))
