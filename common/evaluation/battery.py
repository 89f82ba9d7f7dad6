"""The attacks that need only cached answers: original, result and references side by side, as figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from common.domain import OVERLAP
from common.evaluation.answers import EMBEDDING, Answers, Part
from common.evaluation.attacks import membership, output, probe, prototype
from common.evaluation.attacks.prototype import Recovered
from common.evaluation.attacks.shots import title
from common.evaluation.budget import Budget
from common.evaluation.figures import ORIGINAL, RESULT, Figure, distance, references_of, share
from common.evaluation.intervals import Statistic

HEADLINE_SHOTS = 5  # of the probe that counts for the verdict
NO_OBJECT, NOT_FOUND = "no object", "not found"
FEW = 200  # resamples and items of distances, whose cost grows with the square of the items


class Battery:
    """Figures of one proof.

    Args:
        answers: subject -> its answers, with labels as positions in `names`.
        names: forgotten classes, then known ones.
        forgotten: how many of them were forgotten.
        shared: names that original, result and references all know.
        probes: subject -> what `probed` gives for it.
    """

    def __init__(
        self, answers: Mapping[str, Answers], names: Sequence[str], forgotten: int, shared: Sequence[str], budget: Budget,
        probes: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:  # fmt: skip
        self.answers, self.names, self.budget, self.probes = answers, list(names), budget, probes
        self.forgotten = list(range(forgotten))
        self.shared = [self.names.index(name) for name in shared]
        self.references = references_of(answers)

    def attacks(self) -> dict[str, Callable[[], Iterator[Figure]]]:
        """Attack -> its figures."""
        found = {"output": self.output, "membership": self.membership, "probe": self.probe, "prototype": self.prototype}
        return found if self.references else {n: a for n, a in found.items() if n != "membership"}

    def output(self) -> Iterator[Figure]:
        """Accuracy on forgotten training and test items and on retained ones; distance of the answers."""
        whole = not len(self.answers[RESULT].test.located)
        for what, split, group, headline in (
            ("forgotten test items", "test", self.forgotten, whole),
            ("forgotten training items", "train", self.forgotten, False),
            ("retained test items", "test", self.shared, False),
        ):
            values = {}
            for subject, answers in self.answers.items():
                part = _of(getattr(answers, split), group)
                values[subject] = output.correct(part.logits, part.labels)
            kept = group is self.shared
            yield share("output", f"accuracy, {what}", values, self.budget.replicates, headline=headline, kept=kept)
        yield from self._located()
        if self.references:
            vectors = {s: softmax(self._shared(a.test)[:FEW], axis=1) for s, a in self._forgotten().items()}
            yield self._distance("output", "energy distance to the references", "energy distance", vectors, _energy)

    def _located(self) -> Iterator[Figure]:
        """Objects or segments of forgotten classes that are still found: under their name, under any, only under another."""
        found = {s: a.test.located for s, a in self._forgotten().items()}
        if not all(len(one) for one in found.values()):
            return
        kinds = {
            "found and named": lambda any_class, own: own >= OVERLAP,
            "found under any name": lambda any_class, own: any_class >= OVERLAP,
            "seen but unnamed": lambda any_class, own: (any_class >= OVERLAP) & (own < OVERLAP),
        }
        for name, rule in kinds.items():
            values = {s: rule(one[:, 1], one[:, 2])[None].astype(float) for s, one in found.items()}
            headline = name == "found and named"
            yield share("output", f"forgotten items, {name}", values, self.budget.replicates, headline=headline,
                        overlap=OVERLAP)  # fmt: skip

    def membership(self) -> Iterator[Figure]:
        """Total variation to the references' answers, and a machine that tells seen from unseen classes."""
        forgotten = self._forgotten()
        logits = {s: self._shared(a.test) for s, a in forgotten.items()}
        labels = forgotten[RESULT].test.labels

        def variation(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> float:
            own = labels[at]
            return float(
                np.mean([membership.total_variation(x[at][own == c], y[at][own == c]) for c in np.unique(own)])
            )

        yield self._distance("membership", "total variation to the references", "total variation", logits, variation)
        if ORIGINAL in self.answers:
            values = {s: np.concatenate([self._saw(s, c) for c in self.forgotten], axis=1) for s in self.answers}
            yield share("membership", "support vector machine, taken for a model that saw the class", values,
                        self.budget.replicates, kernel="rbf", cost=membership.COST)  # fmt: skip

    def _saw(self, subject: str, c: int) -> np.ndarray:
        """[1, n] for one forgotten class; of a reference, by a machine that learns from the others."""
        others = [r for r in self.references if r != subject] or self.references
        seen, *never = (self._shared(_of(self.answers[s].train, [c])) for s in (ORIGINAL, *others))
        return membership.saw(seen, np.concatenate(never), self._shared(_of(self.answers[subject].test, [c])))

    def probe(self) -> Iterator[Figure]:
        """A logistic head on every block's features, by number of shots."""
        common = [set(a.test.features) for a in self.answers.values()]
        layers = [name for name in self.answers[RESULT].test.features if all(name in own for own in common)]
        for layer in layers:
            for shots in self.budget.shots:
                draws = 1 if shots == 0 else self.budget.draws
                name = f"{layer}, {title(shots)}"
                values = {subject: self.probes[subject][name] for subject in self.answers}
                headline = layer == EMBEDDING and shots == HEADLINE_SHOTS
                yield share("probe", name, values, self.budget.replicates, headline=headline, block=layer, shots=shots,
                            draws=draws, cost=probe.COST)  # fmt: skip

    def prototype(self) -> Iterator[Figure]:
        """Mean features as head rows, by number of shots and blend; nothing is blended with rows that are means of all."""
        for alpha in [a for a in self.budget.alphas if a == 1 or all(map(self._readable, self.answers.values()))]:
            for shots in self.budget.prototypes:
                found = {s: self._prototypes(a, shots, alpha) for s, a in self.answers.items()}
                parameters: dict[str, Any] = {
                    "shots": shots,
                    "alpha": alpha,
                    "draws": self.budget.draws,
                    "metric": "cosine",
                }
                for group in ("forgotten", "retained"):
                    values = {s: getattr(one, group) for s, one in found.items()}
                    headline = group == "forgotten" and alpha == 1 and shots in (1, HEADLINE_SHOTS)
                    name = f"{group} with alpha {alpha:g}, {title(shots)}"
                    kept = group == "retained"
                    yield share("prototype", name, values, self.budget.replicates, headline=headline, kept=kept,
                                **parameters)  # fmt: skip

    def _prototypes(self, answers: Answers, shots: int, alpha: float) -> Recovered:
        train, test = _pair(answers.train, EMBEDDING), _pair(answers.test, EMBEDDING)
        head = answers.head if self._readable(answers) else prototype.class_means(*train, len(self.names))
        found = prototype.recovered(head, train, test, self.forgotten, shots, alpha, self.budget.draws)
        kept = np.isin(test[1][~np.isin(test[1], self.forgotten)], self.shared)
        return found._replace(retained=found.retained[:, kept])

    def _readable(self, answers: Answers) -> bool:
        """Whether there are rows of a classifier to compare embeddings with."""
        return answers.head.shape == (len(self.names), answers.train.features[EMBEDDING].shape[1])

    # ---- helpers -----------------------------------------------------------------------------------------

    def confusions(self) -> dict[str, dict[str, Any]]:
        """Subject -> forgotten class -> what its test items are called now."""
        found = {}
        for subject, answers in self.answers.items():
            others = answers.test.logits.shape[1] - len(self.names)
            columns = [*self.names, *(f"unused {i}" for i in range(others))]
            part = _of(answers.test, self.forgotten)
            answered = output.confusion(part.logits, part.confidence, part.labels, columns)
            for label, called in _called(part.located, [*columns, NO_OBJECT]).items():
                answered[label]["answers"] = called
            found[subject] = {self.names[label]: one for label, one in answered.items()}
        return found

    def _forgotten(self) -> dict[str, Answers]:
        return {s: Answers(a.train, _of(a.test, self.forgotten), a.head) for s, a in self.answers.items()}

    def _shared(self, part: Part) -> np.ndarray:
        """[N, shared] logits of the classes that all models know."""
        return part.logits[:, self.shared]

    def _distance(
        self, attack: str, name: str, unit: str, arrays: Mapping[str, np.ndarray],
        measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    ) -> Figure:  # fmt: skip
        """Mean distance to the references; of a reference, to the others."""

        def statistic(subject: str) -> Statistic:
            others = [arrays[r] for r in self.references if r != subject]
            return lambda at: float(np.mean([measure(arrays[subject], y, at) for y in others])) if others else 0.0

        n = len(arrays[RESULT])
        return distance(attack, name, unit, {s: statistic(s) for s in arrays}, n, min(FEW, self.budget.replicates))


def probed(answers: Answers, forgotten: int, budget: Budget) -> dict[str, np.ndarray]:
    """Name of a probe -> what `probe.recovered` gives, for every block of one model and number of shots."""
    found, gone = {}, list(range(forgotten))
    for layer in answers.test.features:
        train, test = _pair(answers.train, layer), _pair(answers.test, layer)
        for shots in budget.shots:
            draws = 1 if shots == 0 else budget.draws
            found[f"{layer}, {title(shots)}"] = probe.recovered(train, test, gone, shots, draws)
    return found


def _energy(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> float:
    return output.energy_distance(x[at], y[at])


def _of(part: Part, labels: Sequence[int]) -> Part:
    own = np.isin(part.labels, labels)
    features = {name: value[own] for name, value in part.features.items()}
    found = part.located[np.isin(part.located[:, 0], labels)]
    return Part(part.labels[own], part.logits[own], part.confidence[own], found, features)


def _called(located: np.ndarray, columns: Sequence[str]) -> dict[int, dict[str, int]]:
    """Label -> how often its items are called what, by the surest prediction that covers them; see `Part.located`."""
    found: dict[int, dict[str, int]] = {}
    for label in np.unique(located[:, 0]):
        own = located[located[:, 0] == label]
        names = [columns[int(row[3])] if row[1] >= OVERLAP else NOT_FOUND for row in own]
        found[int(label)] = dict(Counter(names).most_common())
    return found


def _pair(part: Part, layer: str) -> tuple[np.ndarray, np.ndarray]:
    return part.features[layer], part.labels
