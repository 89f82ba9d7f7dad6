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


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the named modules: [B, D] as they are, [B, ..., D] as means over what lies between; those of
    several forward passes one below the other."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and out.dim() >= 2:
                rows = out.flatten(1, -2).mean(1) if out.dim() > 2 else out
                seen[name] = torch.cat([seen[name], rows]) if name in seen else rows

        return keep

    hooks = [model.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
