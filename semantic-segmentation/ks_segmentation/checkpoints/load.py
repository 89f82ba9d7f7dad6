"""Loads weights from detectron2, Knowledge Swapping and Hugging Face files into our Mask2Former."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.lora import inject
from common.weights import fitted, rounded
from ks_segmentation.checkpoints.key_map import HEAD, PREDICTOR, ROOT, key_map, newest
from ks_segmentation.checkpoints.read_file import read_weights
from ks_segmentation.config.load import Config, load_config
from ks_segmentation.models.mask2former.model import build_mask2former

log = logging.getLogger(__name__)

CLASS_KEYS = (f"{PREDICTOR}class_embed.weight", f"{PREDICTOR}class_embed.bias")
CLASSES_KEY = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
LORALIB_ALPHA = 1.0  # loralib's default, which the published runs never changed: the update is scaled by 1 / rank
DERIVED = re.compile(
    r"relative_position_index$|^pixel_(mean|std)$|^criterion\.|num_batches_tracked$|\.fc\.(weight|bias)$"
)


def load_checkpoint(
    path_or_state: str | Path | Mapping[str, Any],
    config_file: str | Path | Config,
    overrides: Sequence[Any] = (),
    rehead: bool | None = None,
) -> nn.Module:
    """The model of `config_file` with the given weights, in eval mode.

    Args:
        path_or_state: a `.pth`, `.pkl` or `.safetensors` file, a Hugging Face folder, or name -> array.
            Names may be detectron2's (also of files before head version 2), Knowledge Swapping's with
            loralib adapters (they become adapters here), or transformers' of any version.
        config_file, overrides: see `build_mask2former`.
        rehead: whether a checkpoint with fewer classes may fill the first rows of a larger head. None:
            only if the config is a swap config (LORA_RANK above 0) or `overrides` name NUM_CLASSES.

    Raises:
        UserError: an unreadable or unsafe file, missing names, shapes or numbers of classes that differ.
    """
    config = config_file if isinstance(config_file, Config) else load_config(config_file, overrides)
    named = CLASSES_KEY in [str(key) for key in overrides[::2]]
    allowed = rehead if rehead is not None else named or config.MODEL.SEM_SEG_HEAD.LORA_RANK > 0
    model = build_mask2former(config)
    load_weights(model, path_or_state, allowed)
    return model.eval()


def load_weights(
    model: nn.Module, path_or_state: str | Path | Mapping[str, Any], rehead: bool = False, partial: bool = False
) -> None:
    """Writes weights into `model`; loralib adapters among them are injected into it.

    Args:
        rehead: see `load_checkpoint`.
        partial: accept a file of backbone weights only (names with or without `backbone.`).

    Raises:
        UserError: see `load_checkpoint`.
    """
    is_path = isinstance(path_or_state, (str, Path))
    where = str(path_or_state) if is_path else "the given state"
    state = read_weights(path_or_state)
    with fitted(where):
        _load(model, state, where, rehead, partial)


def _load(model: nn.Module, state: dict[str, Tensor], where: str, rehead: bool, partial: bool) -> None:
    names = key_map(model)
    if any(key.startswith(("model.pixel_level_module.", "network.model.")) for key in state):
        state = _from_transformers(state, names)
    state = _renamed({key: value for key, value in state.items() if not DERIVED.search(key)})
    if partial and not any(key.startswith("sem_seg_head.") for key in state):
        state = {key if key.startswith("backbone.") else f"backbone.{key}": value for key, value in state.items()}
        names = {key: ours for key, ours in names.items() if key.startswith("backbone.")}
    elif partial:
        raise UserError(f"{where} is a whole model, not a backbone.")
    adapters = {key: state.pop(key) for key in list(state) if re.search(r"\.lora_[AB]$", key)}
    _check_names(state, names, where)
    _fit_head(model, state, rehead, where)
    _write(model, state, names, where)
    if adapters:
        _adapt(model, adapters, names, where)


def class_count(state: Mapping[str, Tensor]) -> int:
    """Number of classes that the weights know, without "no object"; 0 when they hold no class layer."""
    for key, value in state.items():
        if key.endswith(("predictor.class_embed.bias", "class_predictor.bias")) and value.dim():
            return len(value) - 1
    return 0


def _from_transformers(state: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The same weights under detectron2's names."""
    known = {newest(key.removeprefix(ROOT)): value for key, value in state.items()}
    return {
        theirs: torch.cat([known[newest(name.removeprefix(ROOT))] for name in ours])
        for theirs, ours in names.items()
        if all(newest(name.removeprefix(ROOT)) in known for name in ours)
    }


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Today's names for those of files written before version 2 of the heads."""
    new = {}
    for key, value in state.items():
        if key.startswith("sem_seg_head.") and not key.startswith((HEAD, PREDICTOR)):
            key = key.replace("sem_seg_head.", HEAD, 1)
        if key.startswith(PREDICTOR):
            key = key.replace("static_query", "query_feat")
        new[key] = value
    return new


def _check_names(state: dict[str, Tensor], names: dict[str, tuple[str, ...]], where: str) -> None:
    missing = [key for key in names if key not in state and not DERIVED.search(key)]
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(names)} tensors of this config, first `{missing[0]}`; "
            "is it a checkpoint of another architecture? Give the config it was trained with."
        )
    extra = [key for key in state if key not in names]
    if extra:
        log.info("%s: %d tensors without a place here are left out, first %s", where, len(extra), extra[0])


def _fit_head(model: nn.Module, state: dict[str, Tensor], rehead: bool, where: str) -> None:
    """Spreads a smaller class layer over ours: old classes keep their rows, "no object" stays the last.

    Rows in between start as the mean of the old ones, so that they say nothing in particular.
    """
    if CLASS_KEYS[0] not in state:
        return
    have, want = state[CLASS_KEYS[0]].shape[0] - 1, model.num_classes
    if have == want:
        return
    if have > want or not rehead:
        raise UserError(f"{where} knows {have} classes and the config {want}; set {CLASSES_KEY} {have}.")
    for key in CLASS_KEYS:
        old = state[key].float()
        fresh = old[:-1].mean(0, keepdim=True).expand(want - have, *old.shape[1:])
        state[key] = torch.cat([old[:-1], fresh, old[-1:]])
    log.info("%s: class layer grown from %d to %d classes; rows %d-%d are fresh", where, have, want, have, want - 1)


@torch.no_grad()
def _write(model: nn.Module, state: dict[str, Tensor], names: dict[str, tuple[str, ...]], where: str) -> None:
    own = model.state_dict()
    for theirs, ours in names.items():
        if theirs not in state:
            continue
        pieces = state[theirs].chunk(len(ours))
        for name, piece in zip(ours, pieces, strict=len(pieces) > 1):
            if own[name].shape != piece.shape:
                raise UserError(
                    f"`{theirs}` is {tuple(state[theirs].shape)} in {where} but this config makes it "
                    f"{(own[name].shape[0] * len(ours), *own[name].shape[1:]) if own[name].dim() else ()}; "
                    "give the config it was trained with."
                )
            if rounded({name: own[name]}, {name: piece}):
                raise UserError(f"`{theirs}` holds whole numbers in {where}, not weights.")
            own[name].copy_(piece)


@torch.no_grad()
def _adapt(model: nn.Module, adapters: dict[str, Tensor], names: dict[str, tuple[str, ...]], where: str) -> None:
    """Injects loralib adapters and fills them; their rank is read from their shapes."""
    places = {}
    for key in sorted(adapters):
        layer = key.rpartition(".")[0]
        ours = names.get(f"{layer}.weight", ())
        if len(ours) != 1 or f"{layer}.lora_A" not in adapters or f"{layer}.lora_B" not in adapters:
            raise UserError(f"{where}: `{key}` adapts no layer of this config, or lacks its partner.")
        places[layer] = ours[0].removesuffix(".weight")
    ranks = {adapters[f"{layer}.lora_A"].shape[0] for layer in places}
    if len(ranks) != 1:
        raise UserError(f"{where}: adapters of ranks {sorted(ranks)}; all must have one rank.")
    inject(model, places.values(), rank=ranks.pop(), alpha=LORALIB_ALPHA)
    for layer, place in places.items():
        module = model.get_submodule(place)
        for leaf in ("lora_A", "lora_B"):
            target, value = getattr(module, leaf), adapters[f"{layer}.{leaf}"]
            if target.shape != value.shape:
                raise UserError(f"{where}: `{layer}.{leaf}` is {tuple(value.shape)}, expected {tuple(target.shape)}.")
            target.copy_(value)
