"""Adapters on disk: save, load, undo, merge. PEFT's file layout, so that `peft` reads them too."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.lora import Adapter, LoRALinear, adapters
from common.record import read_json, write_bytes, write_json
from common.rows import put_rows

WEIGHTS, CONFIG, SWAP = "adapter_model.safetensors", "adapter_config.json", "swap.json"
PREFIX = "base_model.model."


def save(model: nn.Module, folder: str | Path, rows: Mapping[str, list[int]], info: Mapping[str, Any]) -> None:
    """Writes the adapters of `model` and the trained head rows as a folder.

    adapter_model.safetensors: `base_model.model.<layer>.lora_A.weight` [R, in] and `.lora_B.weight` [out, R]
        (fused parts as a block diagonal, stacked adapters joined), and the head parameters that hold trained rows.
    adapter_config.json: PEFT's LoraConfig. swap.json: trained rows, class names, what the adapter belongs to.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in adapters(model).items():
        a, b = (factor.detach().float().cpu() for factor in layer.factors())
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = (
            a.contiguous(),
            b.contiguous(),
        )
        ranks[name], alphas[name] = a.shape[0], layer.scale * a.shape[0]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in rows:
        tensors[PREFIX + name] = parameters[name].detach().cpu().clone().contiguous()
    write_bytes(folder / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, _peft_config(ranks, alphas, rows))
    layout = {name: {"parts": layer.parts, "rank": layer.rank} for name, layer in adapters(model).items()}
    write_json(folder / SWAP, {"rows": dict(rows), "layers": layout, "base": fingerprint(model), **info})


def _peft_config(ranks: dict[str, int], alphas: dict[str, float], rows: Mapping[str, list[int]]) -> dict[str, Any]:
    rank = max(ranks.values(), default=1, key=list(ranks.values()).count)
    alpha = max(alphas.values(), default=1.0, key=list(alphas.values()).count)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{name}$".replace(".", r"\."): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{name}$".replace(".", r"\."): a for name, a in alphas.items() if a != alpha},
        "modules_to_save": sorted({name.rpartition(".")[0] for name in rows}) or None,
    }


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Tells base models apart: number of frozen values and the shapes and means of the adapted weights."""
    layers = adapters(model)
    digest = [float(layer.base_weight().detach().double().abs().mean()) for layer in layers.values()]
    return {
        "parameters": sum(p.numel() for p in base_parameters(model)),
        "mean_abs": [round(d, 9) for d in digest],
    }


def checksum(model: nn.Module) -> float:
    """One number for all parameters of `model`: whether a run is continued on the weights it started from."""
    return float(f"{sum(p.detach().double().abs().sum().item() for p in model.parameters()):.9e}")


def base_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the adapter factors."""
    factors = {id(f) for layer in adapters(model).values() for f in layer.live()}
    return [p for p in model.parameters() if id(p) not in factors]


@dataclass
class Loaded:
    """What `load` changed, so that `undo` can put it back exactly."""

    rows: dict[str, list[int]]
    before: dict[str, Tensor]
    info: dict[str, Any]


def load(model: nn.Module, folder: str | Path) -> Loaded:
    """Puts a saved adapter and its head rows on the base model, in place.

    Raises:
        UserError: no adapter there, damaged, or made for another model.
    """
    from common.lora import inject

    info, tensors = read(folder)
    config = read_json(Path(folder) / CONFIG)
    modules = dict(model.named_modules())
    missing = [name for name in info["layers"] if name not in modules]
    if missing:
        raise UserError(f"the adapter in {folder} adapts layer {missing[0]!r}, which this model does not have.")
    for name, layout in info["layers"].items():
        if name not in adapters(model):  # an attention module brings the adapter of its output projection
            inject(model, [name], layout["rank"], float(layout["rank"]), {name: layout["parts"]})
        _fill(adapters(model)[name], name, tensors, config, folder)
    if info.get("base") and info["base"] != fingerprint(model):
        raise UserError(f"the adapter in {folder} was made for other base weights than these.")
    values = {name: tensors[PREFIX + name][indices] for name, indices in info["rows"].items()}
    before = put_rows(model, info["rows"], values)
    return Loaded(info["rows"], before, info)


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(swap.json, tensors) of an adapter folder. Raises UserError when there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    folder = Path(folder)
    if not (folder / SWAP).exists():
        raise UserError(f"{folder} holds no adapter ({SWAP} is missing); name the adapter/ folder of a finished run.")
    try:
        return read_json(folder / SWAP), from_bytes((folder / WEIGHTS).read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}") from None


@torch.no_grad()
def _fill(layer: Adapter, name: str, tensors: dict[str, Tensor], config: dict[str, Any], folder: str | Path) -> None:
    """Reads the live factors back out of the dense ones; what was stacked below them becomes the past."""
    a, b = tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]
    live_rows = layer.lora_A.shape[0]
    if a.shape[1] != layer.lora_A.shape[1] or b.shape[0] != layer.lora_B.shape[0]:
        raise UserError(
            f"the adapter in {folder} does not fit layer {name!r}: it maps {a.shape[1]} to {b.shape[0]} values."
        )
    past = a.shape[0] - live_rows
    key = f"^{name}$".replace(".", r"\.")
    alpha = config["alpha_pattern"].get(key, config["lora_alpha"])
    layer.scale = alpha / a.shape[0]
    layer.past_A, layer.past_B = a[:past].clone(), b[:, :past].clone()
    layer.lora_A.copy_(a[past:])
    size, height = layer.rank, b.shape[0] // layer.parts
    blocks = [b[i * height : (i + 1) * height, past + i * size : past + (i + 1) * size] for i in range(layer.parts)]
    layer.lora_B.copy_(torch.cat(blocks))


def undo(model: nn.Module, loaded: Loaded) -> None:
    """Takes a loaded adapter off again: the model is what it was before, bit for bit."""
    put_rows(model, loaded.rows, loaded.before)
    remove(model)


def remove(model: nn.Module) -> None:
    """Replaces every adapted layer by its plain base layer, in place."""
    for name, layer in adapters(model).items():
        if isinstance(layer, LoRALinear):
            _replace(model, name, _plain_linear(layer, layer.weight))
        else:
            _replace(model, name, _plain_attention(layer, layer.in_proj_weight))


def merge(model: nn.Module) -> nn.Module:
    """A copy of `model` whose adapted layers are plain layers with W + scale B A; `model` is untouched."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in adapters(result).items():
            weight = nn.Parameter(layer.base_weight() + layer.delta(), requires_grad=False)
            make = _plain_linear if isinstance(layer, LoRALinear) else _plain_attention
            _replace(result, name, make(layer, weight))
    return result


def _plain_linear(layer: LoRALinear, weight: nn.Parameter) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = weight, layer.bias
    return plain.train(layer.training)


def _plain_attention(layer: nn.MultiheadAttention, weight: nn.Parameter) -> nn.MultiheadAttention:
    plain = nn.MultiheadAttention(
        layer.embed_dim, layer.num_heads, layer.dropout, bias=layer.in_proj_bias is not None,
        batch_first=layer.batch_first, add_zero_attn=layer.add_zero_attn, device="meta",
    )  # fmt: skip
    plain.in_proj_weight, plain.in_proj_bias = weight, layer.in_proj_bias
    plain.out_proj.weight, plain.out_proj.bias = layer.out_proj.weight, layer.out_proj.bias
    return plain.train(layer.training)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def class_names(folder: str | Path) -> list[str]:
    """The class names behind the logit rows of a saved adapter."""
    return json.loads((Path(folder) / SWAP).read_text())["classes"]


def save_model(model: nn.Module, folder: str | Path, info: Mapping[str, Any]) -> None:
    """Writes a whole model: model.safetensors and swap.json, for methods that train every parameter."""
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, value in model.state_dict().items():
        first = seen.setdefault(value.data_ptr(), name) if value.numel() else name
        if first != name:
            tied[name] = first
        else:
            tensors[name] = value.detach().cpu().clone().contiguous()
    write_bytes(folder / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / SWAP, {"tied": tied, **info})


def load_model(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Reads a whole model written by `save_model` into `model`; returns swap.json."""
    from safetensors.torch import load as from_bytes

    folder = Path(folder)
    info = read_json(folder / SWAP)
    tensors = from_bytes((folder / "model.safetensors").read_bytes())
    tensors |= {name: tensors[first] for name, first in info["tied"].items()}
    model.load_state_dict(tensors)
    return info
