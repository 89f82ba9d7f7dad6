"""Relearning: fresh adapters on the merged model, trained by the loop itself on a handful of forgotten items, or on none."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from common import lora
from common.domain import OVERLAP, Batch, Domain, Evaluation, GalleryItem
from common.evaluation.answers import items
from common.plan import Plan
from common.record import Run
from common.settings import settings_from
from common.streams import Chosen, Ordered, Stream, derive
from common.trainer import Trainer

RANK, LOOKS = 4, 16


@dataclass(frozen=True)
class Attempt:
    """One run of the attacker.

    steps:  after how many steps the score was taken; scores: [steps] what `score` gives.
    hits:   [n] whether each forgotten test item is named after the last step.
    """

    steps: tuple[int, ...]
    scores: np.ndarray
    hits: np.ndarray


def relearn(
    domain: Domain, model: nn.Module, forgotten: Sequence[str], known: Sequence[str], shots: int, steps: int, lr: float,
    seed: int = 0, most: int = 200, batch: int = 16, flags: Mapping[str, Any] | None = None,
) -> Attempt:  # fmt: skip
    """Trains fresh adapters (rank 4) and the forgotten head rows on `shots` training items of each forgotten class.

    The keep batches are all training items of the known classes, so that accuracy on those does not pay for the
    recovery. With `shots` 0 no forgotten item is shown: the known classes alone are trained on ("retain only",
    arXiv:2505.22310). Range 0..1; high: the class comes back. An attacker tries several rates; take the best.

    Args:
        model: adapters merged; it is copied.
        flags: further settings of the loop by flag name.

    Source: relearn time, SCRUB's notebook after Golatkar et al.; the loop, AdamW, constant rate, batches of `batch`.
    """
    groups = {"known": tuple(known), "forgotten": tuple(forgotten)}
    target, missing = ("forgotten", ()) if shots else ("known", ("forgotten",))
    plan = Plan("relearn", groups, (("learn", (target,)),), missing=missing)
    own = FewItems(domain, model, forgotten, _positions(domain, forgotten, shots, seed) if shots else None)
    values = {"method": "replay", "lora_rank": RANK, "steps": steps, "lr": lr, "batch_size": batch, "seed": seed,
              "schedule": "constant", "warmup": 0.0, "precision": "fp32", "gallery": 0, "device": _device(model),
              "save_every": 1e9, "train_head_rows": bool(shots)}  # fmt: skip
    taken: list[int] = []
    found: list[float] = []
    wanted = {1, 2, *(round(steps * i / LOOKS) for i in range(1, LOOKS + 1))}
    with tempfile.TemporaryDirectory() as folder, quiet():

        def look(kind: str, record: Mapping[str, Any]) -> None:
            if kind == "steps" and record["step"] + 1 in wanted:
                taken.append(record["step"] + 1)
                found.append(score(domain, trainer.model, forgotten, most, batch))

        run = Run(folder, callbacks=[look])
        trainer = Trainer(own, plan, settings_from((), values | dict(flags or {})), run)
        start = score(domain, trainer.model, forgotten, most, batch)
        trainer.swap()
        last = hits(domain, trainer.model, forgotten, most, batch)
    return Attempt((0, *taken), np.array([start, *found]), last)


def score(domain: Domain, model: nn.Module, classes: Sequence[str], most: int, batch_size: int) -> float:
    """How well the classes are known, 0..1: the share of `hits`, or, where a picture holds several items, what
    `Domain.recovery` names (AP50 of a detector, mean IoU of a segmenter) on all test pictures."""
    if domain.recovery is None:
        return float(hits(domain, model, classes, most, batch_size).mean())
    with evaluated(model):
        found = domain.evaluate_groups(model, {"": classes})[""]
    return (found.figures[domain.recovery] if domain.recovery else found.scores)["total"] / 100


def hits(domain: Domain, model: nn.Module, classes: Sequence[str], most: int, batch_size: int) -> np.ndarray:
    """[n] whether each test item of the classes is named: a picture by the largest logit, an object or a segment by a
    prediction of its class that covers it. The model's mode stays as it was."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    with evaluated(model):
        parts = domain.pictures(classes, train=False, most=most)
        for whole, own in parts or ():
            outputs = domain.outputs_of(model, whole)
            for name, part in own.items():
                covers = domain.located(model, part, outputs)
                found[name].append((covers[:, 1] >= OVERLAP).cpu().numpy())
        for name in classes if parts is None else ():
            for batch in items(domain, name, False, most, batch_size):
                prediction = domain.predict(model, batch)
                mine = prediction.labels == domain.classes.row(name)
                found[name].append((prediction.scores.argmax(-1) == prediction.labels)[mine].cpu().numpy())
    return np.concatenate([hit for name in classes for hit in found[name]]).astype(float)


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers with its adapters merged; its mode stays as it was."""
    training = model.training
    model.eval()
    with torch.inference_mode(), lora.merged(model):
        yield
    model.train(training)


def first_step(steps: Sequence[int], shares: Sequence[float], level: float) -> int | None:
    """The first step after which the share of named items reaches `level` (0..1); None where it never does."""
    return next((step for step, value in zip(steps, shares, strict=True) if value >= level - 1e-9), None)


def anamnesis(result: int | None, reference: int | None, steps: int) -> float | None:
    """Steps of the unlearned model over those of a never-saw model: 1 ideal, below 1 the class comes back too fast.

    None where neither came back within `steps`; a model that did not counts with `steps`.

    Source: anamnesis index, Chundawat et al., AAAI 2023, arXiv:2201.05629 (alpha: back within 20 % of the original).
    """
    if result is None and reference is None:
        return None
    return (result or steps) / max(1, reference or steps)


class FewItems:
    """A domain whose training items of the forgotten classes are a few, and whose model is given.

    positions: in the loader of the forgotten classes; None draws from all.
    """

    def __init__(
        self, domain: Domain, model: nn.Module, forgotten: Sequence[str], positions: tuple[int, ...] | None
    ) -> None:
        self.domain, self.model, self.forgotten, self.positions = domain, model, tuple(forgotten), positions
        self.base: nn.Module | None = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.domain, name)

    def build_model(self, pretrained: bool = True) -> nn.Module:
        """A copy of the attacked model, every parameter free."""
        return copy.deepcopy(self.model).requires_grad_(True)

    def freeze(self, model: nn.Module, like: nn.Module | None = None, again: bool = False) -> None:
        """All rates and all models are attacked with the same views."""
        self.domain.freeze(model, like, again=True)

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Batch]:
        """The domain's own, but for the forgotten classes' training items."""
        if train and stream is not None and self.positions is not None and tuple(classes) == self.forgotten:
            stream = Chosen(stream.seed, stream.batch_size, stream.start, stream.rank, stream.world, self.positions)
        return self.domain.loader(classes, train=train, stream=stream)

    def evaluate_groups(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], most: int = 0
    ) -> dict[str, Evaluation]:
        """No scores: the attack takes its own answers."""
        return {} if most else dict.fromkeys(groups, Evaluation({"total": 0.0}))

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        """No pictures."""
        return []


def _positions(domain: Domain, forgotten: Sequence[str], shots: int, seed: int) -> tuple[int, ...]:
    """Where `shots` items of each class stand in the loader of all of them; found by their names."""
    names = {c: [n for batch in items(domain, c, True, 10**9, 16) for n in domain.item_names(batch)] for c in forgotten}
    chosen: set[str] = set()
    for c, own in names.items():
        order = np.random.default_rng(derive(seed, "shots", c)).permutation(len(own))
        chosen |= {own[i] for i in order[:shots]}
    together = domain.loader(forgotten, train=True, stream=Ordered(0, 16))
    every = [name for batch in together for name in domain.item_names(batch)]
    return tuple(i for i, name in enumerate(every) if name in chosen)


def _device(model: nn.Module) -> str:
    return str(next(model.parameters()).device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the loop prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
