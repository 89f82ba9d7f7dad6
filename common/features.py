"""What the blocks of a model put out, one row per item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Domain
from common.sparsity import block_of


def blocks(domain: Domain, model: nn.Module) -> list[str]:
    """The blocks that adapters can go on, in depth order."""
    names = {name for names in domain.lora_targets(model).values() for name in names}
    return list(dict.fromkeys(block_of(name) for name, _ in model.named_modules() if name in names))


class Keeper:
    """A forward hook that reads a module's output and nothing else, so that whoever computes this output without calling
    the module can tell it: keeper(output). See `keepers`."""

    def __init__(self, name: str, seen: dict[str, Tensor]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, *told: Any) -> None:
        out = told[-1][0] if isinstance(told[-1], tuple) else told[-1]
        if isinstance(out, Tensor) and out.dim() >= 2:
            rows = out.flatten(1, -2).mean(1) if out.dim() > 2 else out
            self.seen[self.name] = torch.cat([self.seen[self.name], rows]) if self.name in self.seen else rows


def keepers(module: nn.Module) -> list[Keeper]:
    """Those that listen to a module."""
    return [hook for hook in module._forward_hooks.values() if isinstance(hook, Keeper)]


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the named modules: [B, D] as they are, [B, ..., D] as means over what lies between; those of
    several forward passes one below the other."""
    seen: dict[str, Tensor] = {}
    hooks = [model.get_submodule(name).register_forward_hook(Keeper(name, seen)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
