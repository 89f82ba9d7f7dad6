"""The config of a checkpoint, read off its keys and shapes."""

import re

from torch import Tensor

from common.errors import UserError
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.resnet import DEPTHS
from ks_detection.dino.swin import SIZES


def infer_config(state: dict[str, Tensor]) -> DinoConfig:
    """Backbone, levels, classes, queries, depths, widths and LoRA rank of a state under our names.

    The number of heads is not visible in any shape and is taken as the published 8.

    Raises:
        UserError: a key that must be there is missing, or the backbone is not one that shapes can tell.
    """
    heads = 8
    levels = count(state, r"input_proj\.(\d+)\.0\.weight")
    stages = sum(get(state, f"input_proj.{i}.0.weight").shape[-1] == 1 for i in range(levels))
    points = get(state, "transformer.encoder.layers.0.self_attn.attention_weights.bias").shape[0]
    decoder_points = get(state, "transformer.decoder.layers.0.cross_attn.attention_weights.bias").shape[0]
    classes, width = get(state, "class_embed.weight").shape
    if points % (heads * levels) or decoder_points % (heads * levels):
        raise UserError("checkpoint: attention shapes do not fit 8 heads; give a config.")
    return DinoConfig(
        num_classes=classes,
        dn_labelbook_size=get(state, "label_enc.weight").shape[0] - 1,
        backbone=infer_backbone(state),
        return_interm_indices=tuple(range(4 - stages, 4)),
        num_feature_levels=levels,
        hidden_dim=width,
        nheads=heads,
        dim_feedforward=get(state, "transformer.encoder.layers.0.linear1.weight").shape[0],
        enc_layers=count(state, r"transformer\.encoder\.layers\.(\d+)\.norm1\.weight"),
        dec_layers=count(state, r"transformer\.decoder\.layers\.(\d+)\.norm1\.weight"),
        enc_n_points=points // (heads * levels),
        dec_n_points=decoder_points // (heads * levels),
        num_queries=get(state, "transformer.tgt_embed.weight").shape[0],
        lora_rank=next((t.shape[0] for name, t in state.items() if name.endswith("lora_A")), 0),
    )


def infer_backbone(state: dict[str, Tensor]) -> str:
    """The published name of the backbone whose keys these are."""
    if "backbone.body.layer3.0.conv1.weight" in state:
        depth = count(state, r"backbone\.body\.layer3\.(\d+)\.conv1\.weight")
        name = next((name for name, depths in DEPTHS.items() if depths[2] == depth), None)
    else:
        name = _infer_swin(state)
    if name is None:
        raise UserError("checkpoint: the backbone is no ResNet-50/101 or Swin-T/S/B/L; give a config that names it.")
    return name


def _infer_swin(state: dict[str, Tensor]) -> str | None:
    table = state.get("backbone.layers.0.blocks.0.attn.relative_position_bias_table")
    if table is None:
        return None
    width = get(state, "backbone.patch_embed.proj.weight").shape[0]
    depth = count(state, r"backbone\.layers\.2\.blocks\.(\d+)\.norm1\.weight")
    window = (round(table.shape[0] ** 0.5) + 1) // 2
    wanted = (width, depth, window)
    return next((name for name, (w, depths, _, size) in SIZES.items() if (w, depths[2], size) == wanted), None)


def count(state: dict[str, Tensor], pattern: str, what: str = "not a DINO detector") -> int:
    """One more than the largest number that `pattern` captures from a key. Raises UserError where no key fits."""
    found = [int(match[1]) for name in state if (match := re.fullmatch(pattern, name))]
    if not found:
        raise UserError(f"checkpoint: no key like `{pattern.replace(chr(92), '')}`; this is {what}.")
    return max(found) + 1


def get(state: dict[str, Tensor], name: str, what: str = "not a two-stage DINO detector") -> Tensor:
    """A tensor that must be there. Raises UserError naming the key where it is not."""
    if name not in state:
        raise UserError(f"checkpoint: key `{name}` is missing; this is {what}.")
    return state[name]
