"""The smallest domain there is: Gaussian blobs and a residual MLP with two blocks, trained in a second."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.domain import ClassTable, Domain, Prediction
from common.streams import Stream


class Points(NamedTuple):
    """[N, D] points, [N] logit rows, N names."""

    points: Tensor
    labels: Tensor
    names: list[str]


class Block(nn.Module):
    """x + FFN(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Stem, two residual blocks, linear head; `steps` counts training steps, as BatchNorm's buffers do."""

    def __init__(self, classes: int, width: int = 12, inputs: int = 6) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, classes)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def embed(self, x: Tensor) -> Tensor:
        """[N, width], what the head reads."""
        if self.training:
            self.steps.add_(1)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Blobs(Domain):
    """`classes` blobs of `items` points each; every point has a name and one label.

    Args:
        inputs, width: of the model; spread: deviation of the centres; noise: of the points around theirs.
        mislabelled: class -> class under whose row its training points stand.
    """

    name, metric, metric_label = "blobs", "acc", "top-1 accuracy (%)"

    def __init__(
        self, classes: int = 6, items: int = 16, seed: int = 0, base: nn.Module | None = None, inputs: int = 6,
        width: int = 12, spread: float = 3.0, noise: float = 0.7, mislabelled: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        centres = spread * torch.randn(classes, inputs, generator=generator)
        self.classes = ClassTable(tuple(f"c{i}" for i in range(classes)))
        self.data = {
            train: {
                c: centres[i] + noise * torch.randn(items, inputs, generator=generator)
                for i, c in enumerate(self.classes.names)
            }
            for train in (True, False)
        }
        self.seed, self.base, self.inputs, self.width = seed, base, inputs, width
        self.mislabelled = mislabelled or {}

    def build_model(self, pretrained: bool = True) -> nn.Module:
        if pretrained and self.base is not None:
            return copy.deepcopy(self.base)
        return Net(len(self.classes), self.width, self.inputs)

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return {"ffn": [f"blocks.{i}.fc{j}" for i in range(2) for j in (1, 2)]}

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        return {f"head.{p}": self.classes.rows(classes) for p in ("weight", "bias")}

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return sum(len(self.data[train][c]) for c in classes)

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Points]:
        items = [(c, i) for c in classes for i in range(len(self.data[train][c]))]
        if stream is None:
            share = items[distributed.rank() :: distributed.world()]
            return iter([self._batch(share, [None] * len(share), train)])
        draws = stream.batches(len(items))
        return (self._batch([items[d.index] for d in b], [d.seed for d in b], train) for b in draws)

    def _batch(self, items: Sequence[tuple[str, int]], seeds: Sequence[int | None], train: bool) -> Points:
        points = []
        for (c, i), seed in zip(items, seeds, strict=True):
            shape = self.data[train][c][i].shape
            noise = 0 if seed is None else 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            points.append(self.data[train][c][i] + noise)
        told = [self.mislabelled.get(c, c) if train else c for c, _ in items]
        return Points(torch.stack(points), torch.tensor(self.classes.rows(told)), [f"{c}/{i}" for c, i in items])

    def predict(self, model: Any, batch: Points) -> Prediction:
        embedding = model.embed(batch.points)
        scores = model.head(embedding)
        loss = F.cross_entropy(scores, batch.labels, reduction="none")
        return Prediction(loss.mean(), scores, embedding, batch.labels, loss)

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        scores, right, count = {}, 0.0, 0
        for c in classes:
            hits = (model(self.data[False][c]).argmax(-1) == self.classes.row(c)).float()
            scores[c] = 100 * hits.mean().item()
            right, count = right + hits.sum().item(), count + len(hits)
        return {"total": 100 * right / count} | scores

    def item_names(self, batch: Points) -> list[str]:
        return batch.names

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        """Nothing more is needed."""
