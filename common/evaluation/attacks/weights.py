"""Weight attacks: the adapter scaled, blocks of it dropped, the merged weights rounded; answers only, nothing trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from common.adapters import merge
from common.lora import adapters
from common.sparsity import block_of

Rounding = Callable[[Tensor], Tensor]
SCALES = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0)  # 0 takes the adapter off, which is no attack but the file's other content


@torch.no_grad()
def scaled(model: nn.Module, factor: float, blocks: set[str] | None = None) -> nn.Module:
    """The merged model with the adapter times `factor`, in all blocks or in those named."""
    changed = copy.deepcopy(model)
    for name, layer in adapters(changed).items():
        if blocks is None or block_of(name) in blocks:
            layer.scale *= factor
    return merge(changed)


def adapter_variants(model: nn.Module, drop: int) -> Iterator[tuple[str, nn.Module]]:
    """(title, merged model) per scale, and with each of the blocks dropped in turn, at most `drop` of them.

    High forget accuracy under any of them: the class is suppressed by a fine balance. Source: ForgetGate; LoRA's scale.
    """
    for factor in SCALES:
        yield f"adapter x {factor:g}", scaled(model, factor)
    names = list(dict.fromkeys(block_of(name) for name in adapters(model)))
    for name in names[:drop]:
        yield f"without {name}", scaled(model, 0.0, {name})


@torch.no_grad()
def rounded(model: nn.Module, rounding: Rounding) -> nn.Module:
    """A copy whose matrices are rounded and back in float32."""
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        if parameter.dim() > 1:
            parameter.copy_(rounding(parameter))
    return changed


def to_integers(bits: int) -> Rounding:
    """Symmetric rounding to `bits`, one scale per output row: s = max |w| / (2^(bits-1) - 1), w -> s round(w / s)."""
    top = 2 ** (bits - 1) - 1

    def rounding(weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        size = (flat.abs().amax(1, keepdim=True) / top).clamp_min(1e-12)
        return (size * (flat / size).round()).view_as(weight)

    return rounding


def half(weight: Tensor) -> Tensor:
    """Rounding to float16 and back."""
    return weight.half().to(weight.dtype)


ROUNDINGS: dict[str, Rounding] = {"half": half, "int8": to_integers(8), "int4": to_integers(4)}


def rounded_variants(merged: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(title, model) per rounding of merged weights.

    Source: quantisation brings back what language models unlearned (21 -> 83 %), arXiv:2410.16454.
    """
    for title, rounding in ROUNDINGS.items():
        yield title, rounded(merged, rounding)
