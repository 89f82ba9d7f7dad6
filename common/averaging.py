"""A moving average of what trains, beside the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import UserError


class MovingAverage:
    """Exponential moving average of parameters: the first update copies, later ones take decay old + (1 - decay) new.

    Of adapters the factors are averaged, so that the average is an adapter of the same rank and can be saved
    as one; the published code averages weights that lack the adapter and evaluates the model without it.

    Args:
        parameters: what to average; the others are shared with the model.
        decay: 0..1, the share of the past.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"`decay` must be between 0 and 1, got {decay}.")
        self.parameters, self.decay = list(parameters), decay
        self.values: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present parameters in."""
        if not self.values:
            self.values = [p.detach().clone() for p in self.parameters]
            return
        for value, p in zip(self.values, self.parameters, strict=True):
            value.lerp_(p.detach(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged parameters; its own come back bit for bit. Before an update: no change."""
        if not self.values:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What a resumed run needs."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Takes back what `state_dict` gave."""
        self.values = (
            [v.to(p) for v, p in zip(state["values"], self.parameters, strict=True)] if state["values"] else []
        )

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)
