"""Key layouts of vision transformers: others' names to timm's and back, and a timm model's shape off its keys."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

# ViT-pytorch names, which the published Knowledge Swapping files have -> timm's; `attn` is joined separately
BIRD = {
    "transformer.embeddings.position_embeddings": "pos_embed",
    "transformer.embeddings.cls_token": "cls_token",
    "transformer.embeddings.patch_embeddings.": "patch_embed.proj.",
    "transformer.encoder.encoder_norm.": "norm.",
    "transformer.encoder.layer.": "blocks.",
    "head.": "head.",
}
BIRD_BLOCK = {"attention_norm.": "norm1.", "ffn_norm.": "norm2.", "ffn.": "mlp.", "attn.out.": "attn.proj."}
QKV = ("query", "key", "value")
ODD_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}  # so400m, huge, giant, gigantic, bigG


def is_bird(keys: Iterable[str]) -> bool:
    return any(key.startswith("transformer.embeddings.") for key in keys)


def is_npz(keys: Iterable[str]) -> bool:
    return any("encoderblock_" in key for key in keys)


def is_timm(keys: Iterable[str]) -> bool:
    keys = set(keys)
    return "patch_embed.proj.weight" in keys and "blocks.0.attn.qkv.weight" in keys


def bird_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under timm's keys: query, key and value rows are stacked into qkv.

    Adapters on some of the three become one fused adapter, zero where there was none.
    """
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = re.match(r"transformer\.encoder\.layer\.(\d+)\.attn\.(query|key|value)\.(\w+)$", key)
        if match:
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
        else:
            result[_bird_name(key)] = value
    for key, three in parts.items():
        if "lora" in key:
            three = {name: three.get(name, torch.zeros_like(next(iter(three.values())))) for name in QKV}
        missing = [name for name in QKV if name not in three]
        if missing:
            raise UserError(f"checkpoint: `{key}` cannot be put together, {', '.join(missing)} of it is missing.")
        result[key] = torch.cat([three[name] for name in QKV])
    return result


def _bird_name(key: str) -> str:
    for theirs, ours in BIRD.items():
        if key.startswith(theirs):
            key = ours + key[len(theirs) :]
            break
    match = re.match(r"(blocks\.\d+\.)(.+)", key)
    if match:
        for theirs, ours in BIRD_BLOCK.items():
            if match[2].startswith(theirs):
                return match[1] + ours + match[2][len(theirs) :]
    return key


def timm_to_bird(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `bird_to_timm`. Raises UserError for a model that the layout has no keys for."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", key)
        if block and block[2].startswith("attn.qkv."):
            leaf = block[2].removeprefix("attn.qkv.")
            for name, rows in zip(QKV, value.chunk(3), strict=True):
                result[f"transformer.encoder.layer.{block[1]}.attn.{name}.{leaf}"] = rows.clone()
            continue
        table = BIRD_BLOCK if block else BIRD
        tail = block[2] if block else key
        theirs, ours = next(((t, o) for t, o in table.items() if tail.startswith(o)), (None, ""))
        if theirs is None:
            raise UserError(f"`{key}` has no place in the published layout, which is a plain ViT with a class token.")
        front = f"transformer.encoder.layer.{block[1]}." if block else ""
        result[front + theirs + tail[len(ours) :]] = value
    return result


def npz_to_timm(arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """A Google .npz file under timm's keys, and its number of heads (the file's kernels are [in, heads, out])."""
    arrays = {re.sub(r"^(opt/target/|params/)", "", key): value for key, value in arrays.items()}
    if "pre_logits/kernel" in arrays:
        raise UserError(
            "checkpoint: has a `pre_logits` layer (ImageNet-21k head), which is not read; use a fine-tuned file."
        )
    one = {"cls": "cls_token", "Transformer/posembed_input/pos_embedding": "pos_embed"}
    roots = {"embedding": "patch_embed.proj", "head": "head", "Transformer/encoder_norm": "norm"}
    inside = {
        "LayerNorm_0": "norm1", "LayerNorm_2": "norm2", "MlpBlock_3/Dense_0": "mlp.fc1",
        "MlpBlock_3/Dense_1": "mlp.fc2", "MultiHeadDotProductAttention_1/out": "attn.proj",
    }  # fmt: skip
    result: dict[str, Tensor] = {}
    heads = 0
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in arrays.items():
        stem, _, leaf = key.rpartition("/")
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        block = re.match(r"Transformer/encoderblock_(\d+)/(.+)", stem)
        third = re.search(r"/(query|key|value)$", stem)
        if key in one:
            result[one[key]] = value
        elif block and third:
            heads = value.shape[-2]
            parts.setdefault(f"blocks.{block[1]}.attn.qkv.{leaf}", {})[third[1]] = _turned(value, "qkv")
        elif block and block[2] in inside:
            result[f"blocks.{block[1]}.{inside[block[2]]}.{leaf}"] = _turned(value, inside[block[2]])
        elif stem in roots:
            result[f"{roots[stem]}.{leaf}"] = _turned(value, stem)
        else:
            raise UserError(f"checkpoint: unknown key `{key}`; known is the layout of the vision_transformer files.")
    for key, three in parts.items():
        if set(three) != set(QKV):
            raise UserError(f"checkpoint: `{key}` cannot be put together, only {', '.join(three)} of it is there.")
        result[key] = torch.cat([three[name] for name in QKV])
    return result, heads


def _turned(value: Tensor, layer: str) -> Tensor:
    """One array of a .npz file the way torch stores it: kernels [in, out] -> [out, in], HWIO -> OIHW."""
    if layer == "qkv":  # kernel [in, heads, size], bias [heads, size]
        return value.flatten(1).t().contiguous() if value.dim() == 3 else value.flatten()
    if layer == "attn.proj" and value.dim() == 3:  # [heads, size, out]
        return value.flatten(0, 1).t().contiguous()
    if value.dim() == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    return value.t().contiguous() if value.dim() == 2 else value


def num_heads(width: int, given: int | None) -> int:
    """The attention heads of a ViT of this width; keys do not tell, so it goes by the 64 values per head of ViTs."""
    if given:
        if width % given:
            raise UserError(f"`num_heads` {given} does not divide the width {width}.")
        return given
    if width in ODD_HEADS:
        return ODD_HEADS[width]
    if width % 64:
        raise UserError(f"checkpoint: width {width} does not tell the number of heads; pass num_heads=N.")
    return width // 64


def depth(state: dict[str, Tensor], pattern: str) -> int:
    """Number of blocks, from keys that match `pattern` with the block's number as its group."""
    found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if found != set(range(len(found))):
        raise UserError(f"checkpoint: blocks {sorted(found)} are there, expected them without a gap from 0.")
    return len(found)


def timm_arguments(state: dict[str, Tensor], heads: int | None) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer that fit a state dict under timm's keys.

    Raises:
        UserError: a part is missing, or the keys belong to a variant whose arithmetic they do not tell.
    """
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(f"checkpoint: a ViT, but `{missing[0]}` is missing.")
    if "dist_token" in state:
        raise UserError("checkpoint: a distilled DeiT with two heads, which is not read; use the plain DeiT.")
    width, channels, patch, patch_w = state["patch_embed.proj.weight"].shape
    if patch != patch_w:
        raise UserError(f"checkpoint: patches of {patch}x{patch_w} are not square.")
    tokens = state["pos_embed"].shape[1]
    prefix = int("cls_token" in state) + (state["reg_token"].shape[1] if "reg_token" in state else 0)
    with_prefix = _side(tokens - prefix)
    side = with_prefix or _side(tokens)
    if not side:
        raise UserError(f"checkpoint: {tokens} position embeddings do not make a square of patches.")
    average = "fc_norm.weight" in state or "cls_token" not in state
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": channels,
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "embed_dim": width,
        "depth": depth(state, r"blocks\.(\d+)\."),
        "num_heads": num_heads(width, heads),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "class_token": "cls_token" in state,
        "reg_tokens": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "no_embed_class": bool(prefix) and not with_prefix,
        "global_pool": "avg" if average else "token",
        "fc_norm": "fc_norm.weight" in state,
    }


def _side(count: int) -> int:
    """The side of a square of `count` patches, 0 when there is none."""
    side = math.isqrt(max(count, 0))
    return side if side * side == count else 0


def resize_positions(positions: Tensor, prefix: int, side: int) -> Tensor:
    """[1, prefix + side^2, D] position embeddings for another image size; bilinear, corners kept on corners."""
    head, grid = positions[:, :prefix], positions[:, prefix:]
    old = math.isqrt(grid.shape[1])
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), (side, side), mode="bilinear", align_corners=True)
    return torch.cat([head, grid.flatten(2).transpose(1, 2).to(head.dtype)], dim=1)
