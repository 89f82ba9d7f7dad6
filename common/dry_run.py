"""What a run would do: classes, items, steps, trained values, and how long a few real steps take here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from common import adapters, distributed, trainable
from common.domain import check_items
from common.methods._base import Position
from common.plan import Phase
from common.splits import shorten
from common.timing import peak_memory, reset_peak

if TYPE_CHECKING:
    from common.trainer import Trainer

STEPS = 3  # taken on trial in a phase of each action; the first one warms up


def tell(trainer: Trainer) -> None:
    """Prints what the trainer would do; nothing is written, but its model has moved then."""
    check_items(trainer.domain, trainer.plan, trainer.config.batch_size)
    told = lines(trainer)
    if distributed.is_main():
        print(*told, sep="\n")


def lines(trainer: Trainer) -> list[str]:
    """What `tell` prints."""
    domain, plan, method = trainer.domain, trainer.plan, trainer.config.method
    told = [f"dry run of {plan.name} by {method}; it would go to {trainer.run.folder}, nothing is written", ""]
    told.append(f"  {'group':<16}{'train':>8}{'test':>8}  classes")
    for group, classes in plan.groups.items():
        train, test = (domain.size(classes, train=part) for part in (True, False))
        told.append(f"  {group:<16}{train:>8}{test:>8}  {shorten(classes, 10)}")
    told += ["", f"  {'phase':<24}{'steps':>7}{'target':>8}{'keep':>8}  items to train on"]
    total: dict[str, int] = {}
    for phase in plan.phases:
        _, steps = trainer._length(phase)
        total[phase.action] = total.get(phase.action, 0) + steps
        target, keep = (domain.size(part, train=True) if part else 0 for part in (phase.target, phase.keep))
        told.append(f"  {phase.title:<24}{steps:>7}{target:>8}{keep:>8}")
    trained = trainable.count(trainer.parameters, trainer.rows)
    every = sum(p.numel() for p in adapters.base_parameters(trainer.model))
    told += ["", f"  trained values  {trained:,} of {every:,} ({100 * trained / every:.2g} %)"]
    reset_peak()
    scoring = _scoring(trainer)
    seconds = {action: _step(trainer, action) for action, steps in total.items() if steps}
    for action, (begin, step) in seconds.items():
        told.append(f"  {action:<16}{1000 * step:.0f} ms a step, {begin:.1f} s before the first of a phase")
    told.append(f"  scoring         {scoring:.1f} s, {len(plan.phases) + 1} times")
    begins = sum(seconds[phase.action][0] for phase in plan.phases if phase.action in seconds)
    stepping = sum(step * total[action] for action, (_, step) in seconds.items())
    whole = begins + stepping + scoring * (len(plan.phases) + 1)
    place = (
        f"{trainer.device} with {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else trainer.device
    )
    word = "at most" if any(map(trainer.settling.on, plan.phases)) else "about"
    told.append(f"  {word:<16}{tqdm.format_interval(round(whole))} on {place}, {trainer.format}")
    told.append(f"  memory          {peak_memory(trainer.device) / 2**20:,.0f} MiB at most in these steps")
    return told


def _scoring(trainer: Trainer) -> float:
    """Seconds of one scoring of all groups, from two test batches of the largest group."""
    domain, groups = trainer.domain, trainer.plan.groups.values()
    _, largest = max((domain.size(classes, train=False), classes) for classes in groups)
    total = sum(domain.size(classes, train=False) for classes in groups)
    batches = iter(domain.loader(largest, train=False))
    per_item = 0.0
    with trainer.observer.answering():
        for _ in range(2):
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            domain.predict(trainer.model, batch)
            per_item = (time.perf_counter() - began) / len(domain.item_names(batch))
    return per_item * total / distributed.world()


def _step(trainer: Trainer, action: str) -> tuple[float, float]:
    """(seconds before the first step, of a step) of the first phase of this action."""
    phase: Phase = next(p for p in trainer.plan.phases if p.action == action)
    per_epoch, total = trainer._length(phase)
    began = time.perf_counter()
    trainer._begin(phase, 0)
    begin, batches = time.perf_counter() - began, trainer._batches(phase, 0)
    times = []
    for number in range(STEPS):
        began = time.perf_counter()
        trainer._step(Position(phase, number, max(total, STEPS), per_epoch), batches, trainer.config.lr)
        times.append(time.perf_counter() - began)
    return begin, min(times[1:])
