"""Classifiers as ONNX graphs, and such graphs in the place of a model."""

from __future__ import annotations

from dataclasses import asdict, replace

from torch import Tensor, nn

from common.onnx_file import Answers, Graph, OnnxFile, batches
from ks_classification.models import layers
from ks_classification.models.build import ModelSpec


def graph(model: nn.Module, spec: ModelSpec) -> Graph:
    """The graph of a classifier without adapters. Its input has the one size of the model."""
    settings, images = {**asdict(spec), "classes": []}, batches((spec.size, spec.size))
    return Graph(Answers(model, layers.forward), ("logits", "embedding"), images, False, settings)


class OnnxClassifier(nn.Module):
    """A file in the place of a classifier; `layers.forward` reads logits and embedding off it."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.file, self.head = file, _Head()
        self.place = file.placeholder()

    def forward(self, images: Tensor) -> Tensor:
        self.head.logits, embedding = self.file(images, (len(self.file.classes),), (0,))
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
