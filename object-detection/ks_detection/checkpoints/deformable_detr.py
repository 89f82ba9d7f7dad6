"""Checkpoints of Deformable DETR: key names of the published files <-> ours, and the config they tell.

Ours hold every shared tensor once.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ks_detection.checkpoints.shapes import count, fold, get, points, pyramid
from ks_detection.models.deformable_detr.config import DeformableConfig

WHAT, WHOLE = "no Deformable DETR", "no whole Deformable DETR"
# published -> ours, of what stands once
SINGLE = {
    "query_embed": "network.query_position_embeddings",
    "input_proj": "network.input_proj",
    "transformer": "network",
    "backbone.0": "backbone",
}
# published -> ours, inside a layer
ENCODER = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
DECODER = {
    "self_attn.out_proj": "self_attn.o_proj",
    "cross_attn": "encoder_attn",
    "norm1": "encoder_attn_layer_norm",
    "norm2": "self_attn_layer_norm",
    "norm3": "final_layer_norm",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
}
LAYER = re.compile(r"^(network\.(encoder|decoder)\.layers\.\d+\.)(.+)$")
HEAD = re.compile(r"^(?:transformer\.decoder\.)?((?:class|bbox)_embed\.\d+\..+)$")
PACKED = re.compile(r"^(.+\.self_attn\.)([qkv])_proj\.(weight|bias)$")
BUILT = ("relative_position_index", "num_batches_tracked", "total_params", "total_ops")  # made anew, or counters


def our_name(name: str) -> str:
    """The name under which our model keeps a published tensor; `in_proj_weight` and `in_proj_bias` still packed."""
    head = HEAD.match(name)
    name = _swap_front(head[1] if head else name, SINGLE)
    layer = LAYER.match(name)
    if layer is None:
        return name
    return layer[1] + _swap_front(layer[3], ENCODER if layer[2] == "encoder" else DECODER)


def published_name(name: str) -> str:
    """The first of the names under which the published model keeps one of our tensors."""
    layer = LAYER.match(name)
    if layer:
        name = layer[1] + _swap_front(layer[3], _turned(ENCODER if layer[2] == "encoder" else DECODER))
    return _swap_front(name, _turned(SINGLE))


def is_own(state: dict[str, Tensor]) -> bool:
    """Whether these are published keys of a Deformable DETR (a DINO has `label_enc` and learned contents)."""
    own = ("query_embed.weight", "transformer.pos_trans.weight")
    return "transformer.level_embed" in state and any(name in state for name in own)


def is_refined(state: dict[str, Tensor]) -> bool:
    """Whether published keys are of a model with iterative box refinement."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in state)


def to_ours(state: dict[str, Tensor], config: DeformableConfig | None = None) -> dict[str, Tensor]:
    """The state of a published file (or one under our names) under our names.

    config: says whether every decoder layer has heads of its own; without it the keys say so.

    Raises:
        UserError: copies that should be one tensor differ.
    """
    refined = is_refined(state) if config is None else config.with_box_refine
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.endswith(BUILT):
            mine = our_name(name)
            mine = mine if refined else re.sub(r"^((?:class|bbox)_embed)\.\d+\.", r"\1.0.", mine)
            fold(ours, mine, tensor, name, "is it one with box refinement?")
    for name in [n for n in ours if n.endswith(("in_proj_weight", "in_proj_bias"))]:
        stem, leaf = name.rsplit("in_proj_", 1)
        for letter, part in zip("qkv", ours.pop(name).chunk(3), strict=True):
            ours[f"{stem}{letter}_proj.{leaf}"] = part
    return ours


def to_published(state: dict[str, Tensor], config: DeformableConfig) -> dict[str, Tensor]:
    """The state under the published names; copies share memory, so a file stores them once."""
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        packed = PACKED.match(name)
        if packed:
            if packed[2] == "q":
                parts = [state[f"{packed[1]}{letter}_proj.{packed[3]}"] for letter in "qkv"]
                published[published_name(f"{packed[1]}in_proj_{packed[3]}")] = torch.cat(parts)
            continue
        if not HEAD.match(name):
            published[published_name(name)] = tensor
            continue
        kind, number, leaf = name.split(".", 2)
        numbers = [number] if config.with_box_refine else map(str, range(config.dec_layers))
        published |= {f"{kind}.{n}.{leaf}": tensor for n in numbers}
        if config.with_box_refine and (kind == "bbox_embed" or config.two_stage):
            published[f"transformer.decoder.{name}"] = tensor
    return published


def _swap_front(name: str, table: dict[str, str]) -> str:
    """`name` with the first entry of the table that it begins with replaced."""
    for old, new in table.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _turned(table: dict[str, str]) -> dict[str, str]:
    """Ours -> published; longer names first, as `network` also begins `network.input_proj`."""
    return dict(sorted(((new, old) for old, new in table.items()), key=lambda pair: -len(pair[0])))


def infer_config(state: dict[str, Tensor]) -> DeformableConfig:
    """Backbone, levels, classes, queries, depths, widths and variant of a state under our names.

    Raises:
        UserError: a key that must be there is missing, or the backbone is not one that shapes can tell.
    """
    common = pyramid(state, "network.", "class_embed.0.weight", WHAT, WHOLE)
    levels, two_stage = common["num_feature_levels"], "network.pos_trans.weight" in state
    config = DeformableConfig(
        **common,
        dim_feedforward=get(state, "network.encoder.layers.0.mlp.fc1.weight", WHOLE).shape[0],
        enc_layers=count(state, r"network\.encoder\.layers\.(\d+)\.final_layer_norm\.weight", WHAT),
        dec_layers=count(state, r"network\.decoder\.layers\.(\d+)\.final_layer_norm\.weight", WHAT),
        enc_n_points=points(state, "network.encoder.layers.0.self_attn", levels, WHOLE),
        dec_n_points=points(state, "network.decoder.layers.0.encoder_attn", levels, WHOLE),
        with_box_refine="class_embed.1.weight" in state,
        two_stage=two_stage,
    )
    if not two_stage:
        config.num_queries = get(state, "network.query_position_embeddings.weight", WHOLE).shape[0]
    return config
