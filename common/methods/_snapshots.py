"""Copies of what trains, and of all that a phase may change."""

from __future__ import annotations

from torch import Tensor, nn

from common.state import changing

Weights = dict[str, Tensor]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(model: nn.Module) -> Weights:
    """Copies of the parameters that train."""
    return {name: p.detach().clone() for name, p in trained(model).items()}


def snapshot(model: nn.Module) -> Weights:
    """Copies of the parameters that train and of every buffer."""
    return {name: value.detach().clone() for name, value in changing(model).items()}
