"""Training some rows of a frozen head: the rows of the classes to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class TrainedRows:
    """Rows of head parameters that train while the others stay as they are, bit for bit.

    The whole parameter requires a gradient, a hook zeroes the gradient of the other rows, and the optimizer
    must give it no weight decay (`no_decay`): Adam and SGD then leave rows with a zero gradient untouched.

    Args:
        model: holds the parameters.
        rows: parameter name -> rows, as a domain's `head_rows` gives them.
    """

    def __init__(self, model: nn.Module, rows: dict[str, list[int]]) -> None:
        self.rows = {name: sorted(set(indices)) for name, indices in rows.items() if indices}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.parameters: dict[str, nn.Parameter] = {name: parameters[name] for name in self.rows}
        for name, parameter in self.parameters.items():
            mask = torch.zeros(parameter.shape[0], *[1] * (parameter.dim() - 1), device=parameter.device)
            mask[self.rows[name]] = 1
            parameter.requires_grad_(True)
            parameter.register_hook(lambda grad, mask=mask: grad * mask)

    def count(self) -> int:
        """Number of values that train."""
        unique = {id(p): (p, set(self.rows[name])) for name, p in self.parameters.items()}
        return sum(len(rows) * p[0].numel() for p, rows in unique.values())

    def state(self) -> dict[str, Tensor]:
        """Parameter name -> [rows, ...] copy of the trained rows."""
        return {name: p.detach()[self.rows[name]].clone() for name, p in self.parameters.items()}


@torch.no_grad()
def put_rows(model: nn.Module, rows: dict[str, list[int]], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Writes `values` into the named rows; returns what stood there, so that it can be put back exactly."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {}
    for name, indices in rows.items():
        before[name] = parameters[name][indices].clone()
        parameters[name][indices] = values[name].to(parameters[name])
    return before


@torch.no_grad()
def set_rows(
    layer: nn.Module, kept: Sequence[int], added: int = 0, behind: int = 0, fresh: Mapping[str, Tensor] | None = None
) -> None:
    """Keeps these class rows of a linear, convolution or embedding layer, in this order, in place.

    Args:
        added: new rows behind them.
        behind: rows at the end that belong to no class ("no object") and stay last.
        fresh: the new rows of "weight" and "bias"; by default the mean of all old ones, so that they say nothing in
            particular.
    """
    for name in ("weight", "bias"):
        rows = getattr(layer, name, None)
        if rows is None:
            continue
        old, last = rows[: len(rows) - behind], rows[len(rows) - behind :]
        start = old.mean(0, keepdim=True).expand(added, *old.shape[1:]) if fresh is None else fresh[name].to(old)
        new = torch.cat([old[list(kept)], start, last])
        setattr(layer, name, nn.Parameter(new, requires_grad=rows.requires_grad))
    for name in ("out_features", "out_channels", "num_embeddings"):
        if hasattr(layer, name):
            setattr(layer, name, len(kept) + added + behind)
