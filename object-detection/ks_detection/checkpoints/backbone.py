"""Weights of a backbone alone, such as torchvision and timm publish them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.errors import UserError
from ks_detection.checkpoints.read import read_checkpoint


def load_backbone(model: nn.Module, path: str | Path) -> nn.Module:
    """`model` with the file's backbone weights, in place.

    Keys may stand with or without `body.` and `features.` prefixes; heads and batch counters are left out.

    Raises:
        UserError: the file does not hold this backbone.
    """
    state = read_checkpoint(path).state
    own = model.backbone.state_dict()
    found = {}
    for name in own:
        for candidate in (name, name.removeprefix("body."), f"features.{name}", f"backbone.{name}"):
            if candidate in state and state[candidate].shape == own[name].shape:
                found[name] = state[candidate].float()
                break
    missing = [name for name in own if name not in found and not name.startswith("norm")]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(own)} tensors of backbone {model.config.backbone} are not in it, "
            f"the first is {missing[0]}."
        )
    model.backbone.load_state_dict(found, strict=False)
    return model
