"""What the keys and shapes of a checkpoint say, for any detector."""

import re
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from ks_detection.models.parts.resnet import DEPTHS
from ks_detection.models.parts.swin import SIZES

WHAT, WHOLE = "not a DINO detector", "not a two-stage DINO detector"
HEADS = 8  # of attention: not visible in any shape; every published model has 8


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


def pyramid(state: dict[str, Tensor], prefix: str, head: str, what: str, whole: str) -> dict[str, Any]:
    """The fields of a `PyramidConfig` that keys and shapes tell in the same way for every detector.

    The number of heads is not visible in any shape and is taken as the published 8.

    Args:
        prefix: of the projections' keys; head: the first classifier; what, whole: see `count` and `get`.
    """
    levels = count(state, rf"{re.escape(prefix)}input_proj\.(\d+)\.0\.weight", what)
    stages = sum(get(state, f"{prefix}input_proj.{i}.0.weight", whole).shape[-1] == 1 for i in range(levels))
    classes, width = get(state, head, whole).shape
    return {
        "num_classes": classes, "backbone": infer_backbone(state), "return_interm_indices": tuple(range(4 - stages, 4)),
        "num_feature_levels": levels, "hidden_dim": width, "nheads": HEADS, "lora_rank": lora_rank(state),
    }  # fmt: skip


def points(state: dict[str, Tensor], name: str, levels: int, what: str = WHAT) -> int:
    """Sampling points per head and level of an attention layer. Raises UserError where they do not fit 8 heads."""
    weights = get(state, f"{name}.attention_weights.bias", what).shape[0]
    if weights % (HEADS * levels):
        raise UserError(f"checkpoint: attention shapes do not fit {HEADS} heads; give a config.")
    return weights // (HEADS * levels)


def lora_rank(state: dict[str, Tensor]) -> int:
    """Rank of the adapters in a state, 0 without any."""
    return next((t.shape[0] for name, t in state.items() if name.endswith("lora_A")), 0)


def count(state: dict[str, Tensor], pattern: str, what: str = WHAT) -> int:
    """One more than the largest number that `pattern` captures from a key. Raises UserError where no key fits."""
    found = [int(match[1]) for name in state if (match := re.fullmatch(pattern, name))]
    if not found:
        raise UserError(f"checkpoint: no key like `{pattern.replace(chr(92), '')}`; this is {what}.")
    return max(found) + 1


def get(state: dict[str, Tensor], name: str, what: str = WHOLE) -> Tensor:
    """A tensor that must be there. Raises UserError naming the key where it is not."""
    if name not in state:
        raise UserError(f"checkpoint: key `{name}` is missing; this is {what}.")
    return state[name]


def fold(ours: dict[str, Tensor], mine: str, tensor: Tensor, name: str, advice: str) -> None:
    """Adds a published tensor under our name. Raises UserError where it differs from a copy that is there."""
    known = ours.setdefault(mine, tensor)
    if known.data_ptr() != tensor.data_ptr() and not (known.shape == tensor.shape and torch.equal(known, tensor)):
        raise UserError(f"checkpoint: the copies of `{mine}` differ (`{name}`); {advice}")
