"""The scores of the base before a run: at once where they are quick, else when the first scores after them are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import distributed, trainable
from common.streams import seed_all

if TYPE_CHECKING:
    from common.trainer import Trainer

AT_ONCE = 400  # test items up to which the base is scored before the first step


def begin(trainer: Trainer) -> None:
    """Scores the base at once if there are few test items; says so where it comes later."""
    tested = sum(trainer.domain.size(classes, train=False) for classes in trainer.plan.groups.values())
    if tested <= AT_ONCE:
        look(trainer)
    elif not _done(trainer) and distributed.is_main():
        print(f"  before: the base is scored on its {tested} test items when the first phase ends", flush=True)


def look(trainer: Trainer) -> None:
    """Scores the base and shows its answers, unless that was done; once training has begun, a base built anew, which
    gives the same."""
    observer = trainer.observer
    if _done(trainer):
        return
    if trainer.done["phase"] > 1 or trainer.done["step"] > 0:
        seed_all(trainer.config.seed)
        model = trainer.domain.build_model().to(trainer.device)
        trainable.prepare(model, trainer.domain, trainer.plan, trainer.settings)
        trainer.domain.freeze(model)
        observer = observer.of(model)
    observer.score(phase=0, action="start", epoch=0, step=0, end=True)
    observer.expect()
    observer.show("before")


def _done(trainer: Trainer) -> bool:
    return any(line["phase"] == 0 for line in trainer.observer.metrics)
