"""Group sparsity over adapters."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import Tensor, nn

from common.errors import UserError

GROUPINGS = ("block", "lora", "matrix")
FACTOR = re.compile(r"^(.*?)\.?((?:\w+_)?lora_[AB])$")


def block_of(name: str) -> str:
    """The name up to its last number: 'blocks.3.mlp.fc1' -> 'blocks.3'. Without a number, the parent module.

    A trailing number inside a small container is not a block: torchvision's 'encoder_layer_3.mlp.0' and the
    Face Transformer's 'layers.3.1.fn.fn.net.0' belong to block 3, so the number taken is the last one that
    is followed by at least two more parts, or the last one there is.
    """
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if re.search(r"(^|_)\d+$", part)]
    if not numbered:
        return ".".join(parts[:-1]) or name
    deep = [i for i in numbered if len(parts) - i > 2]
    stacks = _outermost_run(parts, deep) if deep else numbered[-1]
    return ".".join(parts[: stacks + 1])


def _outermost_run(parts: list[str], deep: list[int]) -> int:
    """The last of `deep`, unless it directly follows another number ('layers.3.1': the pair is block 3)."""
    last = deep[-1]
    while last - 1 in deep and not parts[last - 1].isidentifier() and parts[last].isdigit():
        last -= 1
    return last


def groups(model: nn.Module, grouping: str = "block") -> dict[str, list[nn.Parameter]]:
    """The trainable adapter matrices of `model` by group, in depth order.

    Args:
        grouping: "block" (all matrices of a Transformer block), "lora" (the A and B of one layer) or
            "matrix" (every matrix alone).

    Raises:
        UserError: unknown grouping.
    """
    if grouping not in GROUPINGS:
        raise UserError(f"`--grouping` must be one of {', '.join(GROUPINGS)}, got {grouping}.")
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = _group_of(name, grouping)
        if key is not None:
            found.setdefault(key, []).append(parameter)
    return found


@lru_cache(maxsize=2**16)
def _group_of(name: str, grouping: str) -> str | None:
    """The group of a parameter, or None where it is no adapter matrix; asked for every parameter at every step."""
    match = FACTOR.match(name)
    if match is None:
        return None
    layer = match.group(1)
    return {"block": block_of(layer), "lora": layer, "matrix": name}[grouping]


def group_norms(members: dict[str, list[nn.Parameter]]) -> Tensor:
    """[G] Frobenius norm of each group, sqrt(sum of squares), with gradient 0 (not NaN) at exactly zero."""
    squares = torch.stack([torch.cat([p.flatten() for p in own]).float().square().sum() for own in members.values()])
    alive = squares > 0
    # the inner where keeps sqrt away from 0, where its derivative is infinite and 0 * inf is NaN
    return torch.where(alive, torch.where(alive, squares, torch.ones_like(squares)).sqrt(), torch.zeros_like(squares))


def group_penalty(members: dict[str, list[nn.Parameter]]) -> Tensor:
    """Scalar group lasso: the sum over groups of their Frobenius norm.

    Source: GS-LoRA, Zhao et al., CVPR 2024, arXiv:2403.11530, eq. 8 (no group-size weight, no epsilon).
    """
    return group_norms(members).sum()


@torch.no_grad()
def proximal_step(members: dict[str, list[nn.Parameter]], threshold: float) -> None:
    """Shrinks every group towards zero by `threshold` and sets groups below it to exactly zero.

    The proximal operator of `threshold * group_penalty`: P <- max(0, 1 - threshold / ||group||) P. With Adam
    and a subgradient a group never becomes exactly zero; with this step it does.
    """
    for norm, group in zip(group_norms(members).tolist(), members.values(), strict=True):
        factor = max(0.0, 1 - threshold / norm) if norm > 0 else 0.0
        for parameter in group:
            parameter.mul_(factor)


@torch.no_grad()
def zero_group_ratio(members: dict[str, list[nn.Parameter]]) -> float:
    """Share of groups whose norm is 0, 0..1."""
    if not members:
        return 0.0
    return (group_norms(members) == 0).float().mean().item()
