"""Vision transformers under the published keys."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from common.adapters import merge as merged
from common.errors import UserError
from common.lora import LoRALinear, adapters
from common.record import save_tensors
from ks_classification.checkpoints.load import PAST, layouts


def export_published(model: nn.Module, path: str | Path, *, merge: bool = False) -> None:
    """Writes a plain state dict under the published keys: ViT-pytorch's for a timm ViT, else the model's own.

    Args:
        merge: add the adapters to the weights and write no LoRA keys; otherwise they are written as loralib
            keys, folded so that its scale of 1 / rank gives the same update, next to unmerged weights.

    Raises:
        UserError: the layout has no keys for this model.
    """
    state = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
    layers = adapters(model)
    others = [name for name, layer in layers.items() if not isinstance(layer, LoRALinear)]
    if others and not merge:
        raise UserError(f"loralib has no keys for the adapter of `{others[0]}`; write the model with merge=True.")
    if merge:
        state = {name: value.detach().cpu().float() for name, value in merged(model).state_dict().items()}
    else:
        for name, layer in layers.items():
            state[f"{name}.lora_A"], state[f"{name}.lora_B"] = _loralib_factors(layer)
    state = {name: value.contiguous() for name, value in state.items() if not name.endswith(PAST)}
    if layouts.is_timm(state):
        state = layouts.timm_to_bird(state)
    save_tensors(Path(path), state)


@torch.no_grad()
def _loralib_factors(layer: LoRALinear) -> tuple[Tensor, Tensor]:
    """A [parts R, in] and B [out, R] whose update scaled by 1 / R is the layer's; R counts stacked adapters too."""
    a, b = (factor.detach().cpu().float() for factor in layer.live())
    past_a, past_b = layer.past_A.cpu().float(), layer.past_B.cpu().float()
    a = torch.cat([torch.cat([past_a, part]) for part in a.chunk(layer.parts)])
    b = torch.cat([past_b, b], dim=1)
    return a, b * (layer.scale * b.shape[1])
