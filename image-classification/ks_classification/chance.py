"""Refuses a swap whose base model does not know its own classes, which mostly means that its rows are misnamed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common import devices, distributed, precision
from common.chance import known_classes
from common.errors import UserError
from common.plan import Plan
from common.streams import Draw
from common.train_config import TrainConfig
from ks_classification.domain import ClassificationDomain

LEVEL = 0.01  # how probable the answers of a guesser may be to count as better than guessing
IMAGES = 256  # test images looked at, about as many of each class


def refuse_chance(domain: ClassificationDomain, plan: Plan, train: TrainConfig) -> None:
    """Scores the base model on test images of the classes that it is supposed to know, before anything is written.

    The rule: a one-sided exact binomial test, at `LEVEL`, of the number of right answers against guessing among these
    classes, on a quarter of the images and, where that does not do, on all. Too few images for any number to pass it prove nothing, and neither does a single class.

    Raises:
        UserError: the answers are no better than guessing.
    """
    from scipy.special import bdtrc

    known = known_classes(plan, domain.spec.classes)
    if len(known) < 2:
        return
    guess, right, count = 1 / len(known), 0, 0
    for answers in right_answers(domain, domain.classes.rows(known), train):
        right, count = right + sum(answers), count + len(answers)
        if bdtrc(right - 1, count, guess) <= LEVEL:
            return
    if guess**count > LEVEL:
        return
    raise UserError(
        f"the base model names {right} of {count} test images of its {len(known)} known classes rightly, no better than "
        "guessing: its logit rows are probably named wrongly; check --class-names, then --normalize and --img-size, "
        "or add --allow-chance to go on."
    )


def right_answers(domain: ClassificationDomain, rows: list[int], train: TrainConfig) -> Iterator[list[bool]]:
    """Whether the base model names each of some test images of these logit rows rightly: a quarter, then the rest."""
    device = devices.choose_device(train.device, distributed.local_rank())
    format, pixels = precision.choose(train.precision, device), domain.pixels["test"]
    left = dict.fromkeys(rows[:: -(-len(rows) // IMAGES)], max(1, IMAGES // len(rows)))
    chosen = []
    for index, row in enumerate(pixels.rows):
        if left.get(row, 0):
            left[row] -= 1
            chosen.append(Draw(index, None))
    model, size = domain.base.to(device).eval(), domain.config.eval_batch
    try:
        for part in (chosen[::4], [draw for i, draw in enumerate(chosen) if i % 4]):
            right: list[bool] = []
            with torch.inference_mode(), precision.autocast(format, device):
                for batch in (pixels[part[i : i + size]] for i in range(0, len(part), size)):
                    logits, _ = domain.forward(model, [batch])
                    right += (logits.argmax(-1).cpu() == batch.labels).tolist()
            yield right
    finally:
        model.cpu()  # the loop takes a copy to the device
