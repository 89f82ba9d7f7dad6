"""Classifiers as ONNX graphs, and such graphs in the place of a model."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from common.onnx_file import Graph, OnnxFile
from ks_classification.models import layers
from ks_classification.models.build import ModelSpec


class Answers(nn.Module):
    """(logits [N, C], embedding [N, D]) of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return layers.forward(self.model, images)


def graph(model: nn.Module, spec: ModelSpec) -> Graph:
    """The graph of a classifier without adapters. Its input has the one size of the model."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, 3, spec.size, spec.size, generator=generator) for n in (2, 1, 3)]
    settings = {**asdict(spec), "classes": []}
    return Graph(Answers(model), ("logits", "embedding"), images, False, settings)


class OnnxClassifier(nn.Module):
    """A file in the place of a classifier; `layers.forward` reads logits and embedding off it."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.file, self.head = file, _Head()
        self.place = file.placeholder()

    def forward(self, images: Tensor) -> Tensor:
        self.head.logits, embedding = self.file(images, 2)
        return self.head(embedding)


class _Head(nn.Module):
    """Where the embedding passes by."""

    is_classifier = True
    logits: Tensor

    def forward(self, embedding: Tensor) -> Tensor:
        return self.logits


def read(file: OnnxFile) -> tuple[nn.Module, ModelSpec]:
    """The file as a model, and its spec."""
    return OnnxClassifier(file), replace(file.told(ModelSpec), classes=file.classes)
