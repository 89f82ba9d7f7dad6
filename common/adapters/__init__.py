"""Adapters on disk: save, load, undo, merge. PEFT's file layout, so that `peft` reads them too."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.adapters.form import ModelFile, SwapFile
from common.errors import UserError
from common.files import read_data
from common.lora import Adapter, adapters, inject, put_back
from common.record import name_of, write_bytes, write_json, write_text
from common.rows import put_rows
from common.schema import checked_json

WEIGHTS, CONFIG, SWAP, CARD = "adapter_model.safetensors", "adapter_config.json", "swap.json", "README.md"
PREFIX = "base_model.model."
AGAIN = "the command of its run writes it again"
SAME = 1e-6  # relative difference of the mean size of weights that are the same


def save(
    model: nn.Module, folder: str | Path, rows: Mapping[str, list[int]], info: Mapping[str, Any],
    head: Collection[str] = (),
) -> None:  # fmt: skip
    """Writes the adapters of `model` and the trained head rows as a folder.

    adapter_model.safetensors: `base_model.model.<layer>.lora_A.weight` [R, in] and `.lora_B.weight` [out, R]
        (fused parts as a block diagonal, stacked adapters joined), and the head parameters that hold trained rows.
    adapter_config.json: PEFT's LoraConfig. swap.json: trained rows, class names, what the adapter belongs to.
    README.md: a model card.

    Args:
        head: parameters of the classifier, which the SHA-256 of base and result leave out, for new rows change them.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in adapters(model).items():
        a, b = (factor.detach().float().cpu() for factor in layer.factors())
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a.contiguous(), f"{PREFIX}{name}.lora_B.weight": b.contiguous()}
        ranks[name], alphas[name] = a.shape[0], layer.scale * a.shape[0]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in rows:
        tensors[PREFIX + name] = parameters[name].detach().cpu().clone().contiguous()
    data = to_bytes(tensors, metadata={"format": "pt"})
    layers = {n: {"parts": a.parts, "rank": a.rank, "scale": a.scale} for n, a in adapters(model).items()}
    whole: dict[str, Any] = {
        "rows": dict(rows),
        "layers": layers,
        "base": fingerprint(model, rows),
        "weights": digest(data),
    }
    whole |= {
        "base_sha256": sha256(model, {*head, *rows}),
        "result_sha256": sha256(model, {*head, *rows}, True),
        **info,
    }
    write(folder, data, peft_config(ranks, alphas, rows, whole["base_sha256"]), whole)


def write(folder: Path, data: bytes, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """The four files of an adapter."""
    write_bytes(folder / WEIGHTS, data)
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, card(info))
    write_json(folder / SWAP, info)  # last: its digest tells whether the three belong together


def belongs(info: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether swap.json is that of the run with this identity; older files name the plan only."""
    return info.get("plan", identity["plan"]) == identity["plan"] and info.get("run") in (None, name_of(identity))


def digest(data: bytes) -> str:
    """What tells whether swap.json belongs to the weights."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def peft_config(
    ranks: dict[str, int], alphas: dict[str, float], rows: Mapping[str, list[int]], base: str
) -> dict[str, Any]:
    """PEFT's LoraConfig. base: SHA-256 of the base, its `revision`."""
    rank = max(ranks.values(), default=1, key=list(ranks.values()).count)
    alpha = max(alphas.values(), default=1.0, key=list(alphas.values()).count)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,  # peft would look a name up on the hub
        "revision": base,
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


def fingerprint(model: nn.Module, rows: Mapping[str, list[int]]) -> dict[str, Any]:
    """Tells base models apart: number of values and mean size of each adapted weight without trained rows."""
    layers = {name: layer for name, layer in adapters(model).items() if f"{name}.weight" not in rows}
    sizes = {name: float(layer.base_weight().detach().double().abs().mean()) for name, layer in layers.items()}
    return {"parameters": sum(p.numel() for p in base_parameters(model)), "mean_abs": sizes}


def _same_base(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    sizes = saved["mean_abs"]  # by name, or in the order of the layers
    sizes = [sizes.get(name, math.nan) for name in own["mean_abs"]] if isinstance(sizes, dict) else sizes
    if len(sizes) != len(own["mean_abs"]):
        return False
    pairs = zip(sizes, own["mean_abs"].values(), strict=True)
    known = saved["parameters"] in (None, own["parameters"])
    return known and all(math.isclose(a, b, rel_tol=SAME) for a, b in pairs)


def sha256(model: nn.Module, leave_out: Collection[str], updated: bool = False) -> str:
    """SHA-256 of the base parameters by name, in float32, or of those with the adapters' updates added.

    leave_out: names of parameters that do not count.
    """
    layers, factors = adapters(model), {id(f) for layer in adapters(model).values() for f in layer.live()}
    owners = {id(layer.base_weight()): layer for layer in layers.values()}
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if id(value) in factors or name in leave_out:
            continue
        layer = owners.get(id(value)) if updated else None
        tensor = value.detach() if layer is None else value.detach() + layer.delta().detach()
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def card(info: Mapping[str, Any]) -> str:
    """A model card for the hub: its metadata block, and what the adapter does to which base.

    Args:
        info: swap.json; "license" where there is one.
    """
    plan, base = info.get("plan", {}), str(info.get("base_model") or "")
    steps = [
        f"{action} {', '.join(c for g in groups for c in plan['groups'][g])}"
        for action, groups in plan.get("steps", [])
    ]
    sizes = [f"rank {layer['rank']}" for layer in info["layers"].values()]
    known = [f"license: {info['license']}"] if info.get("license") else []
    known += [f"base_model: {base.removeprefix('hf:')}"] if base.startswith("hf:") else []
    lines = ["---", "library_name: peft", *known, "tags:", "- lora", "- knowledge-swapping", "- machine-unlearning", "---", "",
             "# Adapter of a knowledge swap", "", *(f"- {step}" for step in steps),
             f"- method: {info.get('method', 'unknown')}; {len(sizes)} layers, {', '.join(dict.fromkeys(sizes))}",
             f"- base: {base.removeprefix('hf:') or 'not named'}; SHA-256 of its parameters without the classifier: "
             f"`{info['base_sha256']}`",
             f"- license: {info.get('license') or 'not stated; that of the base counts as well'}",
             f"- classes, in the order of their rows: {', '.join(info.get('classes', [])) or 'not named'}", "",
             *_scores(info), "Taking the adapter off gives the base back: what it forgets is hidden, not removed."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _scores(info: Mapping[str, Any]) -> list[str]:
    """A table of the groups: classes, and scores before and after."""
    before, after = info.get("before", {}), info.get("scores", {})
    rows = [
        f"| {group} | {', '.join(classes)} | {before.get(group, math.nan):.1f} | {after.get(group, math.nan):.1f} |".replace(
            "nan", "–"
        )
        for group, classes in info.get("plan", {}).get("groups", {}).items()
    ]
    metric = info.get("metric", "score")
    return [f"| group | classes | {metric} before | after |", "|---|---|---|---|", *rows, ""] if after else []


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
    """Puts a saved adapter and its head rows on the base model, in place; a model that it does not fit stays as it is.

    Raises:
        UserError: no adapter there, damaged, made for another model, or `model` carries one already.
    """
    info, tensors = read(folder)
    if adapters(model):
        raise UserError("the model carries an adapter already; undo or merge that one first.")
    try:
        for name, layout in info["layers"].items():
            if name not in adapters(model):  # an attention module brings the adapter of its output projection
                inject(model, [name], layout["rank"], float(layout["rank"]), {name: layout["parts"]})
            _fill(adapters(model)[name], layout["scale"], *(tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB"))
        _check_rows(model, info["rows"], tensors)
        if not _same_base(info["base"], fingerprint(model, info["rows"])):
            raise UserError("it was made for other base weights than these")
    except (UserError, KeyError, RuntimeError) as error:
        remove(model)
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0].rstrip(".")
        raise UserError(f"the adapter in {folder} does not fit this model: {reason}.") from None
    values = {name: tensors[PREFIX + name][indices] for name, indices in info["rows"].items()}
    before = put_rows(model, info["rows"], values)
    return Loaded(info["rows"], before, info)


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(swap.json, tensors) of an adapter folder. Raises UserError when there is none or it is damaged."""
    folder = Path(folder)
    if not (folder / SWAP).exists():
        raise UserError(f"{folder} holds no adapter ({SWAP} is missing); name the adapter/ folder of a finished run.")
    info = checked_json(folder / SWAP, SwapFile, AGAIN)
    data, tensors = read_tensors(folder / WEIGHTS)
    if info["weights"] != digest(data):
        raise UserError(
            f"{folder / WEIGHTS} and {SWAP} do not belong together: the run was stopped while it wrote them; "
            "start it again with the same command."
        )
    for name, indices in info["rows"].items():
        if PREFIX + name not in tensors or max([len(info.get("classes", [])), *(i + 1 for i in indices)]) > len(
            tensors[PREFIX + name]
        ):
            raise UserError(f"{folder / SWAP} names more rows of {name} than {WEIGHTS} has; {AGAIN}.")
    return info, tensors


def read_tensors(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    """(content, tensors) of a .safetensors. Raises UserError when it cannot be read or is damaged."""
    data = read_data(path)
    try:
        tensors = from_bytes(data)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}.") from None
    if bad := [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise UserError(f"{path} is damaged ({bad[0]} holds values that are no numbers); {AGAIN}.")
    return data, tensors


def _check_rows(model: nn.Module, rows: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in rows:
        saved, own = tensors[PREFIX + name], parameters.get(name)
        if own is None or own.shape != saved.shape:
            has = "no such parameter" if own is None else f"{tuple(own.shape)}"
            raise UserError(f"its {name} is {tuple(saved.shape)}, the model has {has}")
        if not all(0 <= row < len(own) for row in rows[name]):
            raise UserError(f"swap.json names rows that {name} does not have")


@torch.no_grad()
def _fill(layer: Adapter, scale: float, a: Tensor, b: Tensor) -> None:
    """Reads the live factors back out of the dense ones; what was stacked below them becomes the past."""
    if a.shape[1] != layer.lora_A.shape[1] or b.shape[0] != layer.lora_B.shape[0]:
        raise UserError(f"it maps {a.shape[1]} to {b.shape[0]} values where a layer does not")
    past = a.shape[0] - layer.lora_A.shape[0]
    layer.scale = scale
    layer.past_A, layer.past_B = (t.to(layer.lora_A).clone() for t in (a[:past], b[:, :past]))
    layer.lora_A.copy_(a[past:])
    size, height = layer.rank, b.shape[0] // layer.parts
    blocks = [b[i * height : (i + 1) * height, past + i * size : past + (i + 1) * size] for i in range(layer.parts)]
    layer.lora_B.copy_(torch.cat(blocks))


def undo(model: nn.Module, loaded: Loaded) -> None:
    """Takes a loaded adapter off again: the model is what it was before, bit for bit."""
    put_rows(model, loaded.rows, loaded.before)
    remove(model)


def remove(model: nn.Module) -> None:
    """Replaces every adapted layer by the layer it was, in place."""
    for name, layer in reversed(adapters(model).items()):
        put_back(model, name, layer.base_weight())


def merge(model: nn.Module) -> nn.Module:
    """A copy of `model` whose adapted layers are plain layers with W + scale B A; `model` is untouched."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in reversed(adapters(result).items()):
            weight = layer.base_weight() + layer.delta()
            put_back(result, name, nn.Parameter(weight, requires_grad=False))
    return result


def save_model(model: nn.Module, folder: str | Path, info: Mapping[str, Any]) -> None:
    """Writes a whole model: model.safetensors and swap.json, for methods that train every parameter."""
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    seen: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        first = seen.setdefault(place, name)
        if first != name:
            tied[name] = first
        else:
            tensors[name] = value.detach().cpu().clone().contiguous()
    write_bytes(folder / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    write_json(folder / SWAP, {"tied": tied, **info})


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(swap.json, tensors) of a folder with a whole model. Raises UserError when there is none or it is damaged."""
    info = checked_json(Path(folder) / SWAP, ModelFile, AGAIN)
    return info, read_tensors(Path(folder) / "model.safetensors")[1]


def load_model(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Reads a whole model written by `save_model` into `model`; returns swap.json.

    Raises:
        UserError: no model there, damaged, or of another architecture.
    """
    path = Path(folder) / "model.safetensors"
    info, tensors = read_model(folder)
    try:
        model.load_state_dict(tensors | {name: tensors[first] for name, first in info["tied"].items()})
    except KeyError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except RuntimeError as error:  # torch lists every key that differs
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{path} does not fit this model: {' '.join(lines[1:2])[:300]}") from None
    return info
