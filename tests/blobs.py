"""The smallest domain there is: Gaussian blobs, a residual MLP with two blocks, in milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import make_trainer

from common import distributed
from common.domain import ClassTable, Domain, Prediction
from common.methods._base import Position, Step
from common.methods._snapshots import trained
from common.plan import Plan, make_plan
from common.trainer import Trainer

REST = ("c1", "c2", "c3")  # what `forget_plan` retains


class Points(NamedTuple):
    """[N, 6] points, [N] logit rows, N names."""

    points: Tensor
    labels: Tensor
    names: list[str]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Stem, two residual blocks, linear head; `count` running steps stand in for BatchNorm's buffers."""

    def __init__(self, classes: int, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, classes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def embed(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Blobs(Domain):
    """`classes` blobs of `items` points each; every point has a name and one label."""

    name, metric, metric_label = "blobs", "acc", "top-1 accuracy (%)"

    def __init__(self, classes: int = 6, items: int = 16, seed: int = 0, base: nn.Module | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = 3 * torch.randn(classes, 6, generator=generator)
        self.classes = ClassTable(tuple(f"c{i}" for i in range(classes)))
        self.data = {
            train: {
                c: centres[i] + 0.7 * torch.randn(items, 6, generator=generator)
                for i, c in enumerate(self.classes.names)
            }
            for train in (True, False)
        }
        self.seed, self.base = seed, base

    def build_model(self, pretrained: bool = True) -> nn.Module:
        import copy

        if pretrained and self.base is not None:
            return copy.deepcopy(self.base)
        return Net(len(self.classes))

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return {"ffn": [f"blocks.{i}.fc{j}" for i in range(2) for j in (1, 2)]}

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        return {f"head.{p}": self.classes.rows(classes) for p in ("weight", "bias")}

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return sum(len(self.data[train][c]) for c in classes)

    def _items(self, classes, train):
        return [(c, i) for c in classes for i in range(len(self.data[train][c]))]

    def loader(self, classes, *, train, stream=None):
        items = self._items(classes, train)
        if not train:
            share = items[distributed.rank() :: distributed.world()]
            return iter([self._batch(share, [None] * len(share), False)])
        return (self._batch([items[d.index] for d in b], [d.seed for d in b], True) for b in stream.batches(len(items)))

    def _batch(self, items, seeds, train) -> Points:
        points = []
        for (c, i), seed in zip(items, seeds, strict=True):
            noise = 0 if seed is None else 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(seed))
            points.append(self.data[train][c][i] + noise)
        labels = torch.tensor(self.classes.rows(c for c, _ in items))
        return Points(torch.stack(points), labels, [f"{c}/{i}" for c, i in items])

    def predict(self, model: nn.Module, batch: Points) -> Prediction:
        embedding = model.embed(batch.points)
        scores = model.head(embedding)
        loss = F.cross_entropy(scores, batch.labels, reduction="none")
        return Prediction(loss.mean(), scores, embedding, batch.labels, loss)

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        scores, right, count = {}, 0, 0
        for c in classes:
            hits = (model(self.data[False][c]).argmax(-1) == self.classes.row(c)).float()
            scores[c] = 100 * hits.mean().item()
            right, count = right + hits.sum().item(), count + len(hits)
        return {"total": 100 * right / count} | scores

    def item_names(self, batch: Points) -> list[str]:
        return batch.names


def trainer(domain: Domain, plan: Plan, method: str, folder, **settings) -> Trainer:
    """A trainer of `plan`; settings by flag name."""
    return make_trainer(domain, plan, method, folder, **{"gallery": 0, "epochs": 2, **settings})


def pretrained(known: int, classes: int = 6) -> Blobs:
    """A domain whose base model knows the first `known` of its classes."""
    domain = Blobs(classes)
    domain.base = _trained_net(known, classes)
    return domain


@functools.cache
def _trained_net(known: int, classes: int) -> Net:
    domain = Blobs(classes)
    torch.manual_seed(0)
    model = Net(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    names = domain.classes.names[:known]
    points = torch.cat([domain.data[True][c] for c in names])
    labels = torch.tensor(domain.classes.rows(names)).repeat_interleave(len(domain.data[True]["c0"]))
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(points)[:, :known], labels).backward()
        optimizer.step()
    return model.eval()


def forget_plan():
    return make_plan("forget", [], ["c0"], REST)


def begun(method: str, folder, plan: Plan | None = None, domain=None, **settings):
    """A trainer whose method has begun the first phase, and that phase."""
    plan = plan or forget_plan()
    t = trainer(domain or pretrained(4), plan, method, folder, **settings)
    t.method.begin_phase(plan.phases[0])
    return t, plan.phases[0]


def step_of(t, phase, number: int = 0) -> Step:
    """A step with real batches, of `phase`."""
    return Step(Position(phase, number, 10, 5), *next(t._batches(phase, 0)))


def gradients(t, loss) -> dict[str, torch.Tensor]:
    members = trained(t.model)
    grads = torch.autograd.grad(loss, list(members.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(members.items(), grads, strict=True)}


def predictions(t, step):
    return t.domain.predict_together(t.model, [step.target, step.keep])
