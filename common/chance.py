"""Refuses a swap whose base model does not know the classes that it is said to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from common import devices, distributed, precision
from common.domain import Domain, Evaluation
from common.errors import UserError
from common.knobs import knob
from common.plan import Plan
from common.record import NOTHING
from common.train_config import TrainConfig

CLASSES, IMAGES = 32, 2  # classes looked at, and test images of each
FOUND = 0.05  # share of the items that must get any name, else the score is looked at
SCORE = 1.0  # what a model must score that names hardly anything
MARGIN = 0.1  # of the way from guessing to always right


@dataclass
class ChanceConfig:
    """What a swap may start from."""

    allow_chance: bool = knob(False, "go on with a model that knows its own classes no better than a guesser")


def known_classes(plan: Plan, rows: Sequence[str]) -> list[str]:
    """The classes of a plan that the base model, which has these rows, is supposed to know."""
    taught = {c for group in plan.learned_groups for c in plan.groups[group]}
    return [c for group in plan.groups.values() for c in group if c not in taught and c in rows]


def refuse_chance(domain: Domain, plan: Plan, rows: Sequence[str], train: TrainConfig) -> None:
    """Scores the base model of a detector or segmenter on a few test images, before anything is written.

    The items, objects or pixels, are those of `Evaluation.answers`. Several of them share a picture and are no
    independent draws, so that there is no exact test as for images with one class each. The rule: of what gets a name,
    the mean over classes of the share named rightly must lie a tenth of the way from guessing (1 / classes) to 1. A
    model that names nearly nothing, as one trained briefly may with its scores still low, must score 1 at least.

    Args:
        rows: names of the base model's classes.

    Raises:
        UserError: it does not.
    """
    known = known_classes(plan, rows)
    known = known[:: -(-len(known) // CLASSES)] if known else []
    if not known:
        return
    device = devices.choose_device(train.device, distributed.local_rank())
    model = domain.build_model().to(device).eval()
    with torch.inference_mode(), precision.autocast(precision.choose(train.precision, device), device):
        found = domain.evaluate_groups(model, {name: (name,) for name in known}, IMAGES)
    told = problem(found)
    if told:
        raise UserError(
            f"the base model {told} on test images of its {len(known)} known classes: its class rows are probably named "
            "wrongly, or its weights do not fit; check --class-names and the config, or add --allow-chance to go on."
        )


def problem(found: Mapping[str, Evaluation]) -> str:
    """What shows that a model guesses, in words; "" where it does not. found: class -> `Evaluation` of its items."""
    rights, named = [], []
    for name, evaluation in found.items():
        answers = evaluation.answers.get(name, {})
        rest = sum(share for answer, share in answers.items() if answer != NOTHING)
        named.append(rest)
        rights += [answers.get(name, 0.0) / rest] if rest else []
    if not named or not any(evaluation.answers for evaluation in found.values()):
        return ""
    if sum(named) / len(named) < FOUND:
        score = sum(evaluation.scores["total"] for evaluation in found.values()) / len(found)
        return "" if score >= SCORE else f"finds nearly nothing (score {score:.1f})"
    right, guess = sum(rights) / len(rights), 1 / len(found)
    if len(found) < 2 or right >= guess + MARGIN * (1 - guess):
        return ""
    return f"gives the right name to {100 * right:.0f} % of what it names, where a guesser has {100 * guess:.0f} %,"
