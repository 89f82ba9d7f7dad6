"""Vision transformers from the checkpoints of others, and back."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import ClassTable
from common.errors import UserError
from common.lora import adapters, inject
from common.weights import fitted, read_weights, rounded
from ks_classification.checkpoints import layouts
from ks_classification.models.face import FaceTransformer, face_arguments, is_face

log = logging.getLogger(__name__)

KNOWN = "Knowledge Swapping ViT, timm ViT, torchvision vit_*, Google .npz and Face Transformer"
PAST = ("past_A", "past_B")  # what our adapters hold beside loralib's keys


def load_checkpoint(
    path_or_state: str | Path | Mapping[str, Any],
    *,
    lora_alpha: float = 1.0,
    lora_merged: bool = False,
    head: str | None = None,
    num_heads: int | None = None,
    image_size: int | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """The model in a checkpoint, in eval mode and float32; architecture, class rows and LoRA are read off the keys.

    A Knowledge Swapping ("vit_bird"), timm or .npz file becomes timm's VisionTransformer, a torchvision one
    torchvision's, a Face Transformer `FaceTransformer`. LoRA keys become live adapters (`common.lora`). Of timm's
    ViTs those with a plain patch embedding and learned positions are read; post-norm ones ("rpn") have the same
    keys as the others and cannot be told apart.

    Args:
        lora_alpha: the update is scaled by lora_alpha / rank; loralib's 1 is what the published files use.
        lora_merged: the weights contain the update already, which files saved in eval mode do (GS-LoRA's
            task files): it is taken out of the weights, so that it counts once and can be undone.
        head: head of a Face Transformer; margin heads cannot be told apart by their keys (default CosFace).
        num_heads: attention heads, where 64 values per head is not what the model has.
        image_size: resizes a timm model's position embeddings to other images, square, in pixels.
        dropout: in embeddings and feed-forward layers; published are 0.1, timm's and torchvision's default is 0.

    The result has `class_table`, a `ClassTable` if the file has one, else None, and `architecture`, what
    `construct` takes to build the like of it.

    Raises:
        UserError: unreadable file, another architecture, missing keys or sizes that do not fit.
    """
    state, beside = read_weights(path_or_state)
    if image_size is not None and (is_face(state) or _is_torchvision(state)):
        raise UserError("`image_size` resizes timm models only; this checkpoint keeps its own size.")
    with fitted("checkpoint"):
        if is_face(state):
            kind, arguments = "face", face_arguments(state, head, num_heads)
            arguments["dropout"] = 0.1 if dropout is None else dropout
        elif _is_torchvision(state):
            state = _torchvision_names(state)
            kind, arguments = "torchvision", _torchvision_arguments(state, num_heads, dropout or 0.0)
        else:
            kind = "timm"
            arguments, state = _timm_arguments(state, num_heads, image_size, dropout or 0.0)
        model = construct(kind, arguments, skip_init=True)
        model.architecture = (kind, arguments)
        _inject(model, state, lora_alpha)
        _put(model, state)
    if lora_merged:
        _unmerge(model)
    elif adapters(model) and isinstance(model, FaceTransformer):
        log.info(
            "adapters are added to the weights; if the file was saved merged (GS-LoRA's are), pass lora_merged=True"
        )
    model.class_table = _class_table(beside)
    if model.class_table is not None and len(model.class_table) != arguments["num_classes"]:
        raise UserError(
            f"checkpoint: names {len(model.class_table)} classes and has {arguments['num_classes']} logit rows; one is wrong."
        )
    return model.eval()


def construct(kind: str, arguments: Mapping[str, Any], skip_init: bool = False) -> nn.Module:
    """A model of one of the three architectures that checkpoints have ("timm", "torchvision", "face"), at random.

    skip_init: leave out timm's initialisation, for weights that are replaced at once.
    """
    if kind == "face":
        return FaceTransformer(**arguments)
    if kind == "torchvision":
        from torchvision.models.vision_transformer import VisionTransformer

        return VisionTransformer(**arguments)
    from timm.models.vision_transformer import VisionTransformer

    norm = partial(nn.LayerNorm, eps=1e-6)
    model = VisionTransformer(**arguments, norm_layer=norm, weight_init="skip" if skip_init else "")
    for block in model.blocks:
        block.attn.proj_drop.p = 0.0  # published: dropout behind embeddings and feed-forward layers only
    return model


def _timm_arguments(
    state: dict[str, Tensor], heads: int | None, image_size: int | None, dropout: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(arguments, state under timm's keys)."""
    if layouts.is_bird(state):
        state = layouts.bird_to_timm(state)
    elif layouts.is_npz(state):
        state, found = layouts.npz_to_timm(state)
        heads = heads or found
    elif not layouts.is_timm(state):
        raise UserError(
            f"checkpoint of an unknown architecture (keys such as {', '.join(list(state)[:3])}); known are: {KNOWN}."
        )
    arguments = layouts.timm_arguments(state, heads)
    if image_size is not None and image_size != arguments["img_size"]:
        state, arguments["img_size"] = _resized(state, arguments, image_size), image_size
    return arguments | {"pos_drop_rate": dropout, "proj_drop_rate": dropout}, state


def _resized(state: dict[str, Tensor], arguments: dict[str, Any], image_size: int) -> dict[str, Tensor]:
    patch = arguments["patch_size"]
    if image_size < patch or image_size % patch:
        raise UserError(f"`image_size` must be a multiple of the patch size {patch}, got {image_size}.")
    tokens = (arguments["img_size"] // patch) ** 2
    prefix = state["pos_embed"].shape[1] - tokens
    return state | {"pos_embed": layouts.resize_positions(state["pos_embed"], prefix, image_size // patch)}


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return "conv_proj.weight" in state and "encoder.pos_embedding" in state


def _torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files of torchvision before 0.12 call the two layers `linear_1` and `linear_2`."""
    old = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
    return {re.sub(r"\.mlp\.linear_[12]\.", lambda m: old[m[0]], key): value for key, value in state.items()}


def _torchvision_arguments(state: dict[str, Tensor], heads: int | None, dropout: float) -> dict[str, Any]:
    first = "encoder.layers.encoder_layer_0.mlp.0.weight"
    missing = [key for key in (first, "heads.head.weight") if key not in state]
    if missing:
        raise UserError(f"checkpoint: a torchvision ViT, but `{missing[0]}` is missing.")
    width, _, patch, _ = state["conv_proj.weight"].shape
    side = math.isqrt(state["encoder.pos_embedding"].shape[1] - 1)
    inner = state["heads.pre_logits.weight"].shape[0] if "heads.pre_logits.weight" in state else None
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "num_layers": layouts.depth(state, r"encoder\.layers\.encoder_layer_(\d+)\."),
        "num_heads": layouts.num_heads(width, heads),
        "hidden_dim": width,
        "mlp_dim": state[first].shape[0],
        "dropout": dropout,
        "num_classes": state["heads.head.weight"].shape[0],
        "representation_size": inner,
    }


def _inject(model: nn.Module, state: dict[str, Tensor], alpha: float) -> None:
    """Adapters where the checkpoint has them, each with its own rank and number of fused parts."""
    modules = dict(model.named_modules())
    for name in [key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")]:
        a, b = state[f"{name}.lora_A"], state.get(f"{name}.lora_B")
        layer = modules.get(name)
        if b is None or not isinstance(layer, nn.Linear):
            raise UserError(f"checkpoint: adapter of `{name}` has no lora_B, or the model has no such linear layer.")
        rank = b.shape[1]
        parts = a.shape[0] // rank if rank else 0
        if not parts or a.shape != (parts * rank, layer.in_features) or b.shape[0] != layer.out_features:
            raise UserError(
                f"checkpoint: adapter of `{name}` has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}, which do "
                f"not fit {layer.in_features} inputs and {layer.out_features} outputs."
            )
        inject(model, [name], rank, alpha, {name: parts})
        for leaf in PAST:
            if f"{name}.{leaf}" in state:  # frozen adapters of earlier phases; their height is part of the file
                setattr(adapters(model)[name], leaf, torch.empty_like(state[f"{name}.{leaf}"], dtype=torch.float32))


def _put(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies the tensors into the model. Raises UserError naming missing, unknown and misshapen ones."""
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(PAST)]
    unknown = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (wrong, "of another shape"),
            (rounded(own, state), "whole numbers"),
        )
        if names
    ]
    if found:
        raise UserError(f"checkpoint: its keys are nearly those of a {type(model).__name__}, but {'; '.join(found)}.")
    model.load_state_dict(state, strict=False)


@torch.no_grad()
def _unmerge(model: nn.Module) -> None:
    for layer in adapters(model).values():
        layer.base_weight().sub_(layer.delta())


def _class_table(beside: dict[str, Any]) -> ClassTable | None:
    names = beside.get("classes")
    if isinstance(names, Mapping):
        names = names.get("names")
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return ClassTable(tuple(names))
    return None
