"""The parts of a classifier: its head, its FFNs and attention, and the rows of its head."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.layers import channels_last
from common.lora import positions
from common.rows import set_rows


def classifier_name(model: nn.Module) -> str:
    """Name of the last linear layer, the one that makes logits: 'head', 'fc', 'heads.head', ...

    Raises:
        UserError: the model has none.
    """
    name = getattr(model, "default_cfg", {}).get("classifier")
    if isinstance(name, str) and name and isinstance(model.get_submodule(name), nn.Module):
        return name
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "is_classifier")]
    if not names:
        raise UserError(f"{type(model).__name__} has no linear classifier.")
    return names[-1]


def classifier(model: nn.Module) -> nn.Module:
    """The layer that makes logits (see `classifier_name`)."""
    return model.get_submodule(classifier_name(model))


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [B, C], embedding [B, D]) of one forward pass; the embedding is what the classifier reads.

    A Face Transformer answers with the embedding itself; its logits are those without margin.
    """
    head = classifier(model)
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        out = model(channels_last(images))
    finally:
        hook.remove()
    return (out, caught[0]) if caught else (head(out), out)


def adapter_targets(model: nn.Module) -> dict[str, list[str]]:
    """Position ("ffn", "attention") -> names of the layers that adapters go on."""
    return positions(model, getattr(model, "unadapted", ()))


@torch.no_grad()
def widen(model: nn.Module, count: int, seed: int = 0, names: Sequence[str] = ()) -> nn.Module:
    """Gives the classifier `count` logit rows: old rows are kept, new ones xavier-uniform with zero bias.

    Args:
        names: of all rows; a model that makes rows of names (CLIP) starts the new ones so.

    Raises:
        UserError: the model has more rows than that.
    """
    name = classifier_name(model)
    old = model.get_submodule(name)
    rows = old.weight.shape[0]
    if rows > count:
        raise UserError(f"the model has {rows} logit rows, but only {count} classes are named.")
    if rows == count:
        return model
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.empty(count - rows, old.weight.shape[1])
    nn.init.xavier_uniform_(fresh, generator=generator)
    if names and hasattr(model, "class_rows"):
        stated = model.class_rows(names[rows:])
        fresh = fresh if stated is None else stated
    set_rows(old, range(rows), count - rows, fresh={"weight": fresh, "bias": torch.zeros(count - rows)})
    return _noted(model, count)


def select_rows(model: nn.Module, rows: Sequence[int]) -> nn.Module:
    """Leaves the classifier these logit rows only, in this order (ImageNet100 on a 1000-way model)."""
    set_rows(classifier(model), rows)
    return _noted(model, len(rows))


def _noted(model: nn.Module, count: int) -> nn.Module:
    for module in (classifier(model), model):
        if hasattr(module, "num_classes"):
            module.num_classes = count
    return model


def set_dropout(model: nn.Module, p: float) -> None:
    """Sets the dropout behind the position embedding and in the FFNs of a ViT; 0 leaves the model as built."""
    if not p:
        return
    pattern = re.compile(r"(^pos_drop|mlp\.drop[12]?|^dropout|encoder\.dropout|mlp\.[24]|net\.[24]|to_out\.1)$")
    layers = [m for n, m in model.named_modules() if pattern.search(n) and isinstance(m, nn.Dropout)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no dropout layers to set; leave out --dropout.")
    for layer in layers:
        layer.p = p
