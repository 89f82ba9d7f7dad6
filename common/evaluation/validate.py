"""The tests are tested: models of which it is known what they know, on blobs; every line says what is expected."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import nn

from common import adapters, lora
from common.evaluation import verdict
from common.evaluation.attacks import rmia
from common.evaluation.attacks.relearn import quiet
from common.evaluation.bench import Bench
from common.evaluation.budget import BUDGETS
from common.evaluation.cka import linear_cka
from common.evaluation.figures import ORIGINAL, REFERENCE, RESULT, Figure, exceeding
from common.evaluation.intervals import clopper_pearson, percentile, replicates, resamples
from common.evaluation.subjects import Subject
from common.evaluation.synthetic import Blobs
from common.plan import Plan
from common.record import Run
from common.settings import settings_from
from common.streams import derive
from common.trainer import Trainer

FORGOTTEN, RETAINED = ("c0", "c1"), tuple(f"c{i}" for i in range(2, 8))
REFERENCES, HELD_OUT = 3, 10
EVERY_ITEM = 40  # shots: with five of them no model of the blobs comes back to 80 %, which would leave no index
WIDTH = 3.92  # standard deviations that a 95 % interval spans
DATA: dict[str, Any] = {"classes": 8, "items": EVERY_ITEM, "inputs": 24, "width": 16, "spread": 0.8, "noise": 1.0}
BUDGET = replace(BUDGETS["quick"], draws=4, replicates=200, relearn_shots=(5, EVERY_ITEM), relearn_steps=64)
LR = 1e-2
# share of the held-out models that may be flagged: each is one draw from the cloud that it is compared with
ALLOWED = 0.2
CERTAIN = 0.975  # one-sided: how sure it is that a known rate of false alarms gives no more in so many models
CHOICES = 1000  # of references and one held-out model, among all held-out ones


class Line(NamedTuple):
    """One test of the tests."""

    test: str
    expected: str
    found: str
    passed: bool


def trained(seed: int, known: Sequence[str], **changes: Any) -> nn.Module:
    """A model trained by the loop on these classes; the rows of the others are as fresh ones."""
    torch.manual_seed(derive(seed, "start"))
    domain = Blobs(**{**DATA, **changes})
    plan = Plan("pretrain", {"base": tuple(known)}, (("learn", ("base",)),))
    values = {"method": "finetune", "steps": 150, "lr": LR, "batch_size": 64, "seed": seed, "gallery": 0, "device": "cpu",
              "precision": "fp32", "train_head_rows": False}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = Trainer(domain, plan, settings_from((), values), Run(folder))
        trainer.swap()
    rows = domain.classes.rows(c for c in domain.classes.names if c not in known)
    with torch.no_grad():
        fresh = torch.Generator().manual_seed(derive(seed, "rows"))
        head: Any = trainer.model.head
        head.weight[rows] = 0.1 * torch.randn(len(rows), head.weight.shape[1], generator=fresh)
        head.bias[rows] = 0
    return trainer.model.eval()


@torch.no_grad()
def head_only(model: nn.Module) -> nn.Module:
    """Sloppy forgetting: the rows of the forgotten classes are pushed down, the features stay."""
    changed: Any = copy.deepcopy(model)
    rows = Blobs(**DATA).classes.rows(FORGOTTEN)
    changed.head.weight[rows] *= -1
    changed.head.bias[rows] = -10
    return changed


@dataclass
class Attacked:
    """Figures, verdicts and anamnesis index of one result."""

    figures: list[Figure]
    verdicts: list[verdict.Verdict]
    index: float | None

    def above(self) -> list[str]:
        """Attacks with a headline figure above every reference."""
        return sorted({f.attack for f in verdict.above(self.figures)})


class Bank:
    """Attacks each model once; compares any result with the same original and references."""

    def __init__(self, original: nn.Module, references: Sequence[nn.Module]) -> None:
        self.bench = Bench(FORGOTTEN, RETAINED, (), BUDGET, LR)
        self.own = Subject(ORIGINAL, Blobs(**DATA), original)
        for number, model in enumerate(references, 1):
            self.bench.attack(Subject(f"{REFERENCE}-{number}", Blobs(**DATA), model))

    def result(self, model: nn.Module) -> Attacked:
        """The proof of one model."""
        self.bench.attack(self.own) if ORIGINAL not in self.bench.answers else None
        self.bench.attack(Subject(RESULT, Blobs(**DATA), model))
        figures = self.bench.compare()
        found = verdict.verdicts(figures, {}, BUDGET.name, adapter=False, no_reference="")
        return Attacked(figures, found, self.bench.anamnesis()[f"relearn, {EVERY_ITEM} shots"]["index"])


def lines(models: int = HELD_OUT) -> Iterator[Line]:
    """All tests, one after the other. models: held-out ones."""
    original = trained(0, FORGOTTEN + RETAINED)
    bank = Bank(original, [trained(100 + i, RETAINED) for i in range(REFERENCES)])
    yield _head_only(bank, original)
    yield from _held_out(bank, models)
    yield _canaries()
    yield _random_labels()
    yield from _similarity(original)
    yield _undo(original)


def _head_only(bank: Bank, original: nn.Module) -> Line:
    found = bank.result(head_only(original))
    output = next(f for f in found.figures if f.headline and f.attack == "output").result.value
    caught = {"probe", "prototype"} <= set(found.above()) and found.verdicts[-1].level == verdict.SUPPRESSED
    told = f"output {100 * output:.0f} %, above references: {', '.join(found.above()) or 'none'}"
    return Line("head-only forgetting", "output 0 %, caught by probe and prototype", told, caught and output == 0)


def _held_out(bank: Bank, models: int) -> Iterator[Line]:
    found = [bank.result(trained(200 + i, RETAINED)) for i in range(models)]
    flagged = [f for f in found if f.verdicts[-1].level == verdict.SUPPRESSED]
    rate = clopper_pearson(len(flagged), models)
    attacks = sorted({a for f in flagged for a in f.above()})
    told = f"{len(flagged)} of {models} flagged, {verdict.percent(rate)}{': ' + ', '.join(attacks) if attacks else ''}"
    most = round(ALLOWED * models)
    yield Line("held-out retrained models", f"at most {most} flagged", told, len(flagged) <= most)
    for count in (n for n in verdict.FALSE_ALARMS if n < models):
        alarms, known = false_alarms(found, count), verdict.FALSE_ALARMS[count]
        told_apart = stats.binom.ppf(CERTAIN, models, known / 100) / models  # so few models tell the rate no closer
        most = min(ALLOWED, told_apart)
        expected = f"about {known} %, at most {100 * most:.0f} %"
        yield Line(f"false alarms with {count} references", expected, f"{100 * alarms:.1f} %", alarms <= most)
    indices = [f.index for f in found if f.index is not None]
    middle = float(np.median(indices)) if indices else float("nan")
    told = f"{middle:.2f}, median of {len(indices)}"
    yield Line("relearning a never-saw model", "anamnesis about 1 (0.5 to 2)", told, 0.5 <= middle <= 2)


def false_alarms(found: Sequence[Attacked], references: int, seed: int = 0) -> float:
    """How often a held-out model is flagged against others of its kind, over `CHOICES` of both."""
    random = np.random.default_rng(seed)
    results = [[f for f in one.figures if f.headline] for one in found]
    hits = 0
    for _ in range(CHOICES):
        own, *others = random.permutation(len(results))[: references + 1]
        figures = []
        for column, figure in enumerate(results[own]):
            top = max(results[i][column].result.value for i in others)
            e = figure.result
            chance = exceeding(e.value, (e.high - e.low) / WIDTH, top, e.n)
            figures.append(replace(figure, chance=chance))
        hits += bool(verdict.above(figures))
    return hits / CHOICES


def _canaries() -> Line:
    """A class whose training points all stand under another name is called by that name, and by no other."""
    model = trained(300, RETAINED, mislabelled={"c7": "c6"})
    domain = Blobs(**DATA)
    told = (model(domain.data[False]["c7"]).argmax(1) == domain.classes.row("c6")).float().mean().item()
    return Line("canaries under a wrong name", "called by it, at least 90 %", f"{100 * told:.0f} %", told >= 0.9)


def _random_labels() -> Line:
    random = np.random.default_rng(0)
    members = random.integers(0, 2, 200).astype(bool)
    own, out, others, others_out = (random.uniform(0.1, 0.9, size) for size in (200, (3, 200), 100, (3, 100)))
    scores = rmia.scores(own, out, others, others_out)

    def area(at: np.ndarray) -> float:
        own = members[at]
        return rmia.auc(scores[at][own], scores[at][~own])

    value = area(np.arange(200))
    found = percentile(value, replicates(area, resamples(200, 400, 0)), 200)
    told = f"{value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return Line("membership of random labels", "AUC 0.5 inside its interval", told, found.low <= 0.5 <= found.high)


def _similarity(model: Any) -> Iterator[Line]:
    points = torch.cat(list(Blobs(**DATA).data[False].values()))
    with torch.no_grad():
        x = model.embed(points)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(0)))[0]
    for name, y in (("itself", x), ("itself rotated and scaled", 3 * x @ turn + 1)):
        value = linear_cka(x, y)
        yield Line(f"CKA with {name}", "1", f"{value:.6f}", abs(value - 1) < 1e-5)
    shuffled = linear_cka(x, x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))])
    yield Line("CKA with shuffled items", "below 0.2", f"{shuffled:.2f}", shuffled < 0.2)


def _undo(original: nn.Module) -> Line:
    """An adapter with real updates is put on from disk and taken off again."""
    domain = Blobs(**DATA)
    points = torch.cat(list(domain.data[False].values()))
    model, adapted = copy.deepcopy(original), copy.deepcopy(original)
    lora.inject(adapted, domain.lora_targets(adapted)["ffn"], 4, 4.0)
    with torch.no_grad():
        for layer in lora.adapters(adapted).values():
            layer.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        before = model(points)
    with tempfile.TemporaryDirectory() as folder:
        adapters.save(adapted, folder, domain.head_rows(adapted, ["c7"]), {})
        loaded = adapters.load(model, folder)
        with torch.no_grad():
            moved = not torch.equal(model(points), before)
        adapters.undo(model, loaded)
    with torch.no_grad():
        same = torch.equal(model(points), before)
    told = f"{'equal' if same else 'different'} bits{'' if moved else ', but nothing had moved'}"
    return Line("adapter on and off again", "logits equal bit for bit", told, same and moved)


def table(found: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    rows = [("test", "expected", "found", "as expected"), *((*one[:3], "yes" if one.passed else "NO") for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (text[0], rule, *text[1:]))
