"""Model, method and guard as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common import precision
from common.guard import Guard
from common.methods._base import Method, Step


class Objective(nn.Module):
    """model + method as one module whose forward is the loss: what DDP wraps, so that a method may run the
    model as often as it likes before the one backward."""

    def __init__(self, model: nn.Module, method: Method, guard: Guard, format: str, device: torch.device) -> None:
        super().__init__()
        self.model, self.own = model, method.own
        self.settings = (method, guard, format, device)

    def forward(self, step: Step) -> Tensor:
        method, guard, format, device = self.settings
        with precision.autocast(format, device):
            loss = method.loss(step)
            return loss if step.gone is None else loss + guard.loss(step)
