"""The attacks on all models of a case, from the models to the figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.domain import OVERLAP, Domain
from common.evaluation import answers as arrays
from common.evaluation import battery, shadows
from common.evaluation.attacks import radius, relearn, weights
from common.evaluation.attacks.shots import title
from common.evaluation.budget import Budget
from common.evaluation.figures import ORIGINAL, RESULT, Figure, references_of, share
from common.evaluation.shadows import Shadows
from common.evaluation.subjects import Subject
from common.features import blocks
from common.record import pictures, write_json
from common.schema import read_json

NO_MEMBERS = "asks for single pictures; name models that know the classes but not all their pictures with --shadow-runs"
PICTURES = 8  # of forgotten objects or segments
Arrays = dict[str, np.ndarray]


class Bench:
    """Attacks subjects one by one, then compares them.

    Args:
        forgotten, retained, learned: class names; retained ones are known to every subject.
        lr: the learning rate that relearning rates are multiples of; batch: items that fit a forward pass.
        folder: where what is done is kept for the next time; None keeps nothing.
    """

    def __init__(
        self, forgotten: Sequence[str], retained: Sequence[str], learned: Sequence[str], budget: Budget, lr: float,
        batch: int = 64, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.forgotten, self.retained, self.budget = forgotten, retained, budget
        self.lr, self.batch, self.folder, self.cache = lr, batch, folder, folder
        self.names = [*forgotten, *retained, *learned]
        self.answers: dict[str, arrays.Answers] = {}
        self.probes: dict[str, Arrays] = {}
        self.hits: dict[str, dict[str, np.ndarray]] = {}  # attack and variant -> subject -> [1, n]
        self.radii: dict[str, dict[str, np.ndarray]] = {}
        self.curves: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, str] = {}
        self.score, self.unit = float("nan"), "test items named (%)"  # of the original; of the curves
        self.not_run: dict[str, str] = {"rmia": NO_MEMBERS}
        self.shadows = Shadows()
        self.watch = Watch(0)

    # ---- attacks on one model ----------------------------------------------------------------------------

    def attack(self, subject: Subject, cache: Path | None = None) -> None:
        """Everything that needs the model itself; the rest works on what is kept here.

        cache: where what is done lies, instead of `folder`.
        """
        name, domain, model, budget = subject.name, subject.domain, subject.model, self.budget
        self.cache = cache or self.folder
        sizes = len(self.forgotten), len(self.retained)
        self.keys[name] = key = arrays.digest(model, domain, self.names, sizes, budget.items, budget.blocks)
        self.watch.at(f"{name}: answers and features")
        places = arrays.spread(blocks(domain, model), budget.blocks)
        self.answers[name] = arrays.unpack(
            self._kept(
                f"answers-{key}",
                lambda: arrays.pack(
                    arrays.collect(domain, model, self.names, places, budget.items, self.batch, len(self.forgotten))
                ),
            )
        )
        if name in (ORIGINAL, RESULT):
            self._sightings(subject, key)
        told = "-".join(f"{shots:g}" for shots in (budget.draws, *budget.shots))
        own = self.answers[name]
        self.probes[name] = self._kept(f"probe-{key}-{told}", lambda: battery.probed(own, len(self.forgotten), budget))
        self.watch.at(f"{name}: rounded weights")
        found = self._kept(f"weights-{key}-{budget.dropped}", lambda: dict(self._variants(subject)))
        self.watch.at(f"{name}: relearning")
        if name == ORIGINAL:
            if domain.recovery is not None:
                self.unit = f"{domain.recovery} (%)" if domain.recovery else domain.metric_label
            self.score = float(self._kept(f"score-{key}", lambda: self._score(subject))["score"])
        else:
            found |= self._relearn(subject, key)
        for variant, hits in found.items():
            self.hits.setdefault(variant, {})[name] = hits[None]
        self._radius(subject, key)

    def shadow(self, domain: Domain, model: nn.Module, seen: set[str] | None = None, name: str = "") -> None:
        """What a shadow model, trained on the pictures `seen`, or else the attacked model `name` says of single pictures."""
        found = (shadows.shares(domain, model, self.forgotten, t, self.budget.items, self.batch) for t in (True, False))
        train, test = found
        if seen is None:
            self.shadows.attacked[name] = train, test
        else:
            self.shadows.shadows.append((train, test, seen))

    def _variants(self, subject: Subject) -> Iterator[tuple[str, np.ndarray]]:
        variants = dict(weights.rounded_variants(subject.model))
        if subject.adapted is not None:
            variants |= dict(weights.adapter_variants(subject.adapted, self.budget.dropped))
        for variant, model in variants.items():
            yield variant, relearn.hits(subject.domain, model, self.forgotten, self.budget.items, self.batch)

    def _relearn(self, subject: Subject, key: str) -> dict[str, np.ndarray]:
        """Variant -> hits after the last step of the best rate."""
        budget, found = self.budget, {}
        for shots in (*budget.relearn_shots, *([0] if budget.retain_only else [])):
            variant = f"relearn, {title(shots) if shots else 'retained classes only'}"
            tried = []
            for rate in budget.relearn_rates:
                name = f"relearn-{key}-{shots}-{budget.relearn_steps}-{min(16, self.batch)}-{rate * self.lr:g}"
                kept = self._kept(name, partial(self._attempt, subject, shots, rate * self.lr))
                tried.append((float(kept["hits"].mean()), rate, kept))
            _, rate, best = max(tried, key=lambda one: one[:2])
            found[variant] = best["hits"]
            curve = {"steps": best["steps"].tolist(), "share": best["scores"].tolist(), "rate": rate}
            self.curves.setdefault(variant, {})[subject.name] = curve
        return found

    def _sightings(self, subject: Subject, key: str) -> None:
        """Pictures of forgotten objects or segments with what covers them, however it is called."""
        if self.folder is None or subject.domain.recovery is None:
            return
        path = self.folder / f"sightings-{key}.json"
        if not path.exists():
            with relearn.evaluated(subject.model):
                write_json(path, pictures(subject.domain.sightings(subject.model, self.forgotten, PICTURES)))
        self.pictures[subject.name] = read_json(path)

    def _score(self, subject: Subject) -> Arrays:
        found = relearn.score(subject.domain, subject.model, self.forgotten, self.budget.items, self.batch)
        return {"score": np.array(found)}

    def _attempt(self, subject: Subject, shots: int, lr: float) -> dict[str, np.ndarray]:
        budget = self.budget
        found = relearn.relearn(
            subject.domain, subject.model, self.forgotten, self.retained, shots, budget.relearn_steps, lr,
            most=budget.items, batch=min(16, self.batch),
        )  # fmt: skip
        return {"steps": np.array(found.steps), "scores": found.scores, "hits": found.hits}

    def _radius(self, subject: Subject, key: str) -> None:
        """Recovery radius of forgotten images, and how fragile the answers about retained ones are."""
        deviation = subject.domain.pixel_deviation
        if not self.budget.radius or deviation is None:
            self.not_run["radius"] = (
                "not within this budget" if not self.budget.radius else "pictures hold several items"
            )
            return
        groups = (
            ("forgotten images named", self.forgotten, False),
            ("retained images no longer named", self.retained, True),
        )
        kept = self._kept(
            f"radius-{key}-{self.budget.radius}",
            lambda: {n: self._radii(subject, classes, deviation, leave) for n, classes, leave in groups},
        )
        for name, found in kept.items():
            self.radii.setdefault(f"{name} within 8/255", {})[subject.name] = found

    def _radii(
        self, subject: Subject, classes: Sequence[str], deviation: Sequence[float], leave: bool
    ) -> np.ndarray:  # fmt: skip
        each = -(-self.budget.radius // len(classes))
        batches = radius.few(subject.domain, classes[: self.budget.radius], each, min(16, self.batch))
        found = [radius.radii(subject.domain, subject.model, batch, deviation, leave) for batch in batches]
        return torch.cat(found).numpy()

    def _kept(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `make` gives, from disk where it was made before."""
        if self.cache is None:
            return make()
        path = self.cache / f"{name}.npz"
        if not path.exists():
            arrays.save(path, make())
        return arrays.load(path)

    # ---- side by side ------------------------------------------------------------------------------------

    def compare(self) -> list[Figure]:
        """All figures."""
        found: list[Figure] = []
        for attack, figures in self.battery().attacks().items():
            self.watch.at(f"attack: {attack}")
            found += figures()
        if "membership" not in self.battery().attacks():
            self.not_run["membership"] = "no reference"
        plain = self.plain()
        for variant, own in self.hits.items():
            values = plain | own if variant.startswith(("relearn", "adapter", "without")) else own
            attack = "relearn" if variant.startswith("relearn") else "weights"
            headline = variant in ("int8", "int4", "relearn, 5 shots")
            name = variant.removeprefix("relearn, ") if attack == "relearn" else variant
            found.append(share(attack, name, values, self.budget.replicates, headline=headline))
        for name, radii in self.radii.items():
            values = {s: np.isfinite(r)[None].astype(float) for s, r in radii.items()}
            medians = {s: float(np.median(np.nan_to_num(r, posinf=1))) for s, r in radii.items()}
            found.append(
                share(
                    "radius",
                    name,
                    values,
                    self.budget.replicates,
                    kept=name.startswith("retained"),
                    median_radius=medians,
                )
            )
        if self.shadows.shadows:
            found += self.shadows.figures(min(battery.FEW, self.budget.replicates))
            self.not_run.pop("rmia", None)
        return found

    def battery(self) -> battery.Battery:
        """The attacks that work on answers alone."""
        return battery.Battery(self.answers, self.names, len(self.forgotten), self.retained, self.budget, self.probes)

    def plain(self) -> dict[str, np.ndarray]:
        """Subject -> [1, n] whether forgotten test items are named without any attack, as `relearn.hits` says."""
        found = {}
        for name, own in self.answers.items():
            if len(located := own.test.located):
                gone = located[located[:, 0] < len(self.forgotten)]
                found[name] = (gone[:, 2] >= OVERLAP)[None].astype(float)
                continue
            asked = own.test.labels < len(self.forgotten)
            found[name] = (own.test.logits[asked].argmax(1) == own.test.labels[asked])[None].astype(float)
        return found

    def anamnesis(self) -> dict[str, Any]:
        """Variant -> steps back to 80 % of the original's accuracy, and the index against the references' median."""
        found: dict[str, Any] = {}
        level = 0.8 * self.score
        for variant, curves in self.curves.items():
            if not variant.startswith("relearn"):
                continue
            steps = {s: relearn.first_step(c["steps"], c["share"], level) for s, c in curves.items()}
            clouds = [steps[r] or np.inf for r in references_of(steps)]
            middle = np.median(clouds) if clouds else np.inf
            reached = int(middle) if np.isfinite(middle) else None
            index = relearn.anamnesis(steps[RESULT], reached, self.budget.relearn_steps) if clouds else None
            found[variant] = {"level": level, "steps": steps, "index": index}
        return found


class Watch:
    """Tells what is done now, and how long the rest will take if every step costs as much as those before."""

    def __init__(self, total: int) -> None:
        self.total, self.count, self.began = total, 0, time.monotonic()

    def at(self, what: str) -> None:
        """The next step begins."""
        if not self.total:
            return
        spent = time.monotonic() - self.began
        left = spent / self.count * (self.total - self.count) if self.count else None
        self.count += 1
        rest = f", about {left:.0f} s left" if left is not None else ""
        print(f"proof: {self.count}/{self.total} {what}{rest}", file=sys.stderr, flush=True)
