"""A moving average of what trains, beside the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError


class MovingAverage:
    """Exponential moving average of parameters: the first update copies, later ones take decay old + (1 - decay) new.

    The weights that training starts with are not in it. `warm` holds the decay of the n-th later update at
    (1 + n) / (10 + n) at most, so that a run of a few hundred steps does not end with the average of its beginning.

    Of adapters the factors are averaged, so that the average is an adapter of the same rank and can be saved
    as one; the published code averages weights that lack the adapter and evaluates the model without it.

    Args:
        parameters: what to average; the others are shared with the model.
        decay: 0..1, the share of the past; with 0 the average is the present.
        warm: smaller decays at first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, warm: bool = False) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"`decay` must be between 0 and 1, got {decay}.")
        self.parameters, self.decay, self.warm = list(parameters), decay, warm
        self.values: list[Tensor] = []
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present parameters in."""
        if not self.values:
            self.values, self.updates = [p.detach().clone() for p in self.parameters], 0
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm else self.decay
        for value, p in zip(self.values, self.parameters, strict=True):
            value.lerp_(p.detach(), 1 - decay)

    def settle(self) -> None:
        """Makes the average the model's own parameters for good; the next update starts a new one."""
        if self.values:
            self._write(self.values)
        self.values = []

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

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"values": self.values, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.updates = state["updates"]
        self.values = (
            [v.to(p) for v, p in zip(state["values"], self.parameters, strict=True)] if state["values"] else []
        )

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)
