"""RMIA in a proof: was this very picture used? Asked of models that know the forgotten classes, but not all their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.domain import Domain
from common.errors import UserError
from common.evaluation.answers import items
from common.evaluation.attacks import rmia
from common.evaluation.attacks.relearn import evaluated
from common.evaluation.figures import Figure, distance
from common.evaluation.intervals import Statistic
from common.schema import read_json

SPLIT = "split.json"  # of a run folder: the names of its pictures
Shares = dict[str, float]  # picture -> probability of its true class


def used(folder: Path) -> set[str]:
    """The names of the training pictures of a run. Raises UserError where it has not recorded them."""
    if not (folder / SPLIT).exists():
        raise UserError(f"--shadow-runs: {folder} does not say which pictures it was trained on ({SPLIT} is missing).")
    return set(read_json(folder / SPLIT)["train"])


def shares(domain: Domain, model: torch.nn.Module, classes: Sequence[str], train: bool, most: int, size: int) -> Shares:
    """The probability of the true class, 0..1, of at most `most` pictures of each class."""
    if domain.recovery is not None:
        raise UserError("--shadow-runs: membership of single pictures is for pictures with one item each.")
    found: Shares = {}
    with evaluated(model):
        for name in classes:
            for batch in items(domain, name, train, most, size):
                p = domain.predict(model, batch).scores.float().softmax(-1)[:, domain.classes.row(name)]
                found |= zip(domain.item_names(batch), p.tolist(), strict=True)
    return found


@dataclass
class Shadows:
    """What attacked models and shadow models say of training (members) and test pictures of forgotten classes.

    attacked: subject -> (of training pictures, of test pictures); shadows: the same, and what they were trained on.
    """

    attacked: dict[str, tuple[Shares, Shares]] = field(default_factory=dict)
    shadows: list[tuple[Shares, Shares, set[str]]] = field(default_factory=list)

    def figures(self, count: int) -> Iterator[Figure]:
        """The area under the curve, for original and result.

        Members are training pictures that some shadow was trained without. Half of the test pictures are the strangers,
        the others RMIA's population.
        """
        members, test = self._members(), sorted(next(iter(self.attacked.values()))[1])
        strangers, population = test[::2], test[1::2]
        if not members or not population:
            raise UserError("--shadow-runs: every training picture of the forgotten classes was used by all of them.")
        n = len(members) + len(strangers)
        scores = {s: self._scores(own, members, strangers, population) for s, own in self.attacked.items()}

        def area(values: np.ndarray) -> Statistic:
            def measure(at: np.ndarray) -> float:
                inside = at < len(members)
                one_kind = inside.all() or not inside.any()  # possible where there are few items
                return 0.5 if one_kind else rmia.auc(values[at[inside]], values[at[~inside]])

            return measure

        parameters = {"shadows": len(self.shadows), "members": len(members), "strangers": len(strangers)}
        yield distance("rmia", "membership of single pictures, area under the curve", "AUC", {s: area(v) for s, v in scores.items()},
                       n, count, **parameters)  # fmt: skip

    def _members(self) -> list[str]:
        every = sorted(next(iter(self.attacked.values()))[0])
        return [name for name in every if any(name not in seen for _, _, seen in self.shadows)]

    def _scores(
        self, own: tuple[Shares, Shares], members: Sequence[str], strangers: Sequence[str], population: Sequence[str]
    ) -> np.ndarray:
        """[members + strangers] RMIA's score of each picture, its mean by shadows that were not trained on it."""

        def outside(name: str) -> float:
            known: list[Mapping[str, float]] = [{**t, **e} for t, e, seen in self.shadows if name not in seen]
            return float(np.mean([one[name] for one in known]))

        target, told = {**own[0], **own[1]}, [*members, *strangers]
        return rmia.scores(
            np.array([target[name] for name in told]), np.array([[outside(name) for name in told]]),
            np.array([target[name] for name in population]), np.array([[outside(name) for name in population]]),
        )  # fmt: skip
