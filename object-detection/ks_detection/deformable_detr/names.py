"""Key names of the published files and of transformers <-> ours. Ours hold every shared tensor once."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from common.errors import UserError

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
HEAD = re.compile(r"^(?:transformer\.decoder\.|model\.decoder\.)?((?:class|bbox)_embed\.\d+\..+)$")
PACKED = re.compile(r"^(.+\.self_attn\.)([qkv])_proj\.(weight|bias)$")
BUILT = ("relative_position_index", "num_batches_tracked", "total_params", "total_ops")  # made anew, or counters


def our_name(name: str) -> str:
    """The name under which our model keeps a published tensor; `in_proj_weight` and `in_proj_bias` still packed."""
    name = _swap_front(our_head(name), SINGLE)
    layer = LAYER.match(name)
    if layer is None:
        return name
    return layer[1] + _swap_front(layer[3], ENCODER if layer[2] == "encoder" else DECODER)


def our_head(name: str) -> str:
    """Our name of a head that published files and transformers also keep in the decoder; other names as they are."""
    head = HEAD.match(name)
    return head[1] if head else name


def published_name(name: str) -> str:
    """The first of the names under which the published model keeps one of our tensors."""
    layer = LAYER.match(name)
    if layer:
        name = layer[1] + _swap_front(layer[3], _turned(ENCODER if layer[2] == "encoder" else DECODER))
    return _swap_front(name, _turned(SINGLE))


def to_ours(state: dict[str, Tensor], refined: bool) -> dict[str, Tensor]:
    """The state of a published file (or one under our names) under our names.

    Args:
        refined: whether every decoder layer has heads of its own; otherwise their copies are folded into one.

    Raises:
        UserError: copies that should be one tensor differ.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(BUILT):
            continue
        mine = our_name(name)
        if not refined:
            mine = re.sub(r"^((?:class|bbox)_embed)\.\d+\.", r"\1.0.", mine)
        if mine in ours and not _same(ours[mine], tensor):
            raise UserError(f"checkpoint: the copies of `{mine}` differ (`{name}`); is it one with box refinement?")
        ours[mine] = tensor
    for name in [n for n in ours if n.endswith(("in_proj_weight", "in_proj_bias"))]:
        stem, leaf = name.rsplit("in_proj_", 1)
        for letter, part in zip("qkv", ours.pop(name).chunk(3), strict=True):
            ours[f"{stem}{letter}_proj.{leaf}"] = part
    return ours


def to_published(state: dict[str, Tensor], decoder_layers: int, refined: bool, two_stage: bool) -> dict[str, Tensor]:
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
        numbers = [number] if refined else map(str, range(decoder_layers))
        published |= {f"{kind}.{n}.{leaf}": tensor for n in numbers}
        if refined and (kind == "bbox_embed" or two_stage):
            published[f"transformer.decoder.{name}"] = tensor
    return published


def from_transformers(state: dict[str, Tensor], ours: bool) -> dict[str, Tensor]:
    """transformers' state of any version under our names.

    Args:
        ours: whether the backbone is built here (torchvision's key names) or stays transformers'.
    """
    body = "backbone.body." if ours else "backbone.model."
    result = {}
    for name, tensor in state.items():
        name = re.sub(r"^model\.backbone\.(?:conv_encoder\.)?model\.", body, name)
        name = re.sub(r"^model\.", "network.", name)
        name = re.sub(r"(layers\.\d+\.)(fc[12]\.)", r"\1mlp.\2", name)
        result[re.sub(r"self_attn\.out_proj\.", "self_attn.o_proj.", name)] = tensor
    return result


def _swap_front(name: str, table: dict[str, str]) -> str:
    """`name` with the first entry of the table that it begins with replaced."""
    for old, new in table.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _turned(table: dict[str, str]) -> dict[str, str]:
    """Ours -> published; longer names first, as `network` also begins `network.input_proj`."""
    return dict(sorted(((new, old) for old, new in table.items()), key=lambda pair: -len(pair[0])))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.shape == b.shape and torch.equal(a, b))
