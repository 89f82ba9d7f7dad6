"""Vision transformers under the published keys."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.adapters import merge as merged
from common.errors import UserError
from common.lora import LoRALinear, adapters
from common.record import save_tensors, write_bytes, write_json
from ks_classification.checkpoints.load import PAST, layouts
from ks_classification.models.build import PUBLISHED, TORCHVISION, ModelSpec
from ks_classification.models.layers import classifier_name


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


def export_timm(model: nn.Module, folder: Path, spec: ModelSpec) -> None:
    """Writes a folder that timm.create_model("local-dir:FOLDER", pretrained=True) loads, and transformers' TimmWrapper.

    Args:
        model: a timm model without adapters.

    Raises:
        UserError: it is no timm model.
    """
    name, args = spec.name, dict(spec.args)
    if name == f"{PUBLISHED}timm":  # described by its sizes; any plain ViT of timm takes them
        name = "vit_base_patch16_224"
    elif "/" in name or not hasattr(model, "default_cfg"):
        raise UserError(f"{name} is no timm model; its formats are published, folder and onnx.")
    arguments = {key: value for key, value in args.items() if value is not None}
    size = [3, spec.size, spec.size]
    about = {"mean": spec.mean, "std": spec.std, "input_size": size, "num_classes": len(spec.classes)}
    config = {"architecture": name, "num_classes": len(spec.classes), "label_names": spec.classes,
              "model_args": arguments, "pretrained_cfg": {**about, "fixed_input_size": True}}  # fmt: skip
    config["pretrained_cfg"]["classifier"] = classifier_name(model)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(folder / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)


def export_torchvision(model: nn.Module, path: Path, spec: ModelSpec) -> None:
    """Writes the state dict that torchvision's VisionTransformer of the same sizes loads. Raises UserError for others."""
    if spec.name not in (TORCHVISION, f"{PUBLISHED}torchvision"):
        raise UserError(f"{spec.name} is no torchvision model; its formats are published, folder, timm and onnx.")
    export_published(model, path, merge=True)


@torch.no_grad()
def _loralib_factors(layer: LoRALinear) -> tuple[Tensor, Tensor]:
    """A [parts R, in] and B [out, R] whose update scaled by 1 / R is the layer's; R counts stacked adapters too."""
    a, b = (factor.detach().cpu().float() for factor in layer.live())
    past_a, past_b = layer.past_A.cpu().float(), layer.past_B.cpu().float()
    a = torch.cat([torch.cat([past_a, part]) for part in a.chunk(layer.parts)])
    b = torch.cat([past_b, b], dim=1)
    return a, b * (layer.scale * b.shape[1])
