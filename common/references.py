"""The two runs that continual unlearning is measured against, and the distances to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common import distributed
from common.errors import UserError
from common.evaluation.cka import distribution_distance
from common.evaluation.continual import accuracy_gap
from common.evaluation.run_measures import history_of
from common.observer import Observer
from common.plan import Plan, standing
from common.record import REFERENCES, write_json
from common.settings import Settings
from common.train_config import TrainConfig

AGAIN = "reference-retrain-again"


def reference_plans(plan: Plan) -> dict[str, Plan]:
    """ "retrain": the same plan without what is forgotten in the end; "original": the same without any forgetting.

    In the first, the forgotten groups are scored but never shown.

    Raises:
        UserError: nothing is forgotten, or something that no phase learned (then no plan can leave it out).
    """
    forgotten = standing(plan.phases, "forget")
    pretrained = [g for g in forgotten if g not in plan.learned_groups]
    if not forgotten or pretrained:
        what = f"group {pretrained[0]!r} is forgotten but was pretrained" if pretrained else "nothing is forgotten"
        raise UserError(
            f"`--with-references` compares with runs that never learned what is unlearned; in plan {plan.name!r} {what}. "
            f"For pretrained classes run the plan again with --method retrain."
        )
    kept = [(action, tuple(g for g in names if g not in forgotten)) for action, names in plan.steps]
    without = tuple((action, names) for action, names in kept if names)
    learning = tuple((action, names) for action, names in plan.steps if action == "learn")
    return {
        "retrain": replace(plan, name=f"{plan.name}-retrain", steps=without, missing=(*plan.missing, *forgotten)),
        "original": replace(plan, name=f"{plan.name}-original", steps=learning),
    }


def unlearns_nothing(settings: Settings, place: str = "") -> Settings:
    """The settings of the reference run in folder `place`: recording switched off where the method records; another
    seed for the second model that never learned."""
    if place == AGAIN:
        train = replace(settings.train, seed=settings.train.seed + 1)
        configs, flags = {**settings.configs, TrainConfig: train}, {**settings.flags, "seed": train.seed}
        settings = replace(settings, configs=configs, flags=flags)
    if not hasattr(settings.method_config, "disable_unlearning"):
        return settings
    config = replace(settings.method_config, disable_unlearning=True)
    return replace(settings, configs={**settings.configs, settings.method.Config: config})


def embeddings(run: Observer) -> dict[str, Tensor]:
    """Group -> [N, D] test embeddings by the trained model, in the same order for every run, on every rank."""
    found = {}
    with run.answering():
        for group, classes in run.plan.groups.items():
            parts = [
                run.domain.predict(run.model, batch).embedding.float().cpu()
                for batch in run.domain.loader(classes, train=False)
            ]
            everything = [z for share in distributed.gather(parts) for z in share]
            found[group] = torch.cat(everything)
    return found


def compare(main: Observer, carried_out: Callable[[Plan, str], Observer], kind: str = "linear_cka") -> dict[str, Any]:
    """Runs the references and writes references.json into the main run's folder; returns what it holds.

    distance: per group, how far the test embeddings are from the retrained model's; "unlearned" and "remaining"
        are means over those groups. Low is good: the model could be one that never learned.
    floor: the same distances between two models that never learned it, of different seeds: what chance alone makes.
    gap: per remaining group, its score minus that of the run that unlearned nothing, and their mean.

    Args:
        main: the run, finished.
        carried_out: (plan, folder name) -> what is seen of a finished reference run, same domain, method and settings.

    Source: CLArena, arXiv:2507.01189: distribution distance by linear CKA, and accuracy gain.
    """
    plan = main.plan
    forgotten = standing(plan.phases, "forget")
    remaining = [g for g in plan.groups if g not in forgotten]
    own, scores = embeddings(main), history_of(main.metrics)[-1]
    plans = reference_plans(plan)
    theirs, again = (embeddings(carried_out(plans["retrain"], place)) for place in ("reference-retrain", AGAIN))

    def distances(a: Mapping[str, Tensor]) -> dict[str, float]:
        each = {g: distribution_distance(a[g], theirs[g], kind) for g in plan.groups}
        return {**each, "unlearned": _mean(each, forgotten), "remaining": _mean(each, remaining)}

    before = history_of(carried_out(plans["original"], "reference-original").metrics)[-1]
    result: dict[str, Any] = {
        "kind": kind,
        "distance": distances(own),
        "floor": distances(again),
        "gap": {
            **{g: scores[g] - before[g] for g in remaining},
            "mean": accuracy_gap([scores[g] for g in remaining], [before[g] for g in remaining]),
        },
    }
    if distributed.is_main():
        write_json(main.run.path(REFERENCES), result)
        print(
            f"distance to the model that never learned it ({kind}): {result['distance']['unlearned']:.3f} on what was "
            f"unlearned, {result['distance']['remaining']:.3f} on the rest (two such models: "
            f"{result['floor']['unlearned']:.3f} and {result['floor']['remaining']:.3f}); accuracy against the model that unlearned "
            f"nothing: {result['gap']['mean']:+.1f} points on the rest"
        )
    return result


def _mean(values: Mapping[str, float], names: list[str]) -> float:
    return sum(values[n] for n in names) / len(names) if names else 0.0
