"""What goes into layers and comes out of them while a model that is not ours runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """One call of a layer."""

    input: Tensor
    output: Any


@dataclass
class Watched:
    """The calls of a layer, in order."""

    calls: list[Call] = field(default_factory=list)

    def inputs(self) -> Tensor:
        """[L, ...] first inputs of all calls."""
        return torch.stack([call.input for call in self.calls])

    def outputs(self) -> Tensor:
        """[L, ...] outputs of all calls."""
        return torch.stack([call.output for call in self.calls])


@contextmanager
def watched(*layers: nn.Module) -> Iterator[list[Watched]]:
    """Inside, the calls of these layers are kept."""
    kept = [Watched() for _ in layers]

    def hook(one: Watched) -> Any:
        return lambda module, inputs, output: one.calls.append(Call(inputs[0], output))

    handles = [layer.register_forward_hook(hook(one)) for layer, one in zip(layers, kept, strict=True)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
