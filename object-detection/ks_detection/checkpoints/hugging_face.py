"""A Hugging Face folder of a Deformable DETR (config.json and weights) in the form of our own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from ks_detection.checkpoints.deformable_detr import from_transformers, our_head
from ks_detection.checkpoints.read import read_checkpoint
from ks_detection.models.deformable_detr.config import TRANSFORMERS, DeformableConfig
from ks_detection.models.parts.resnet import DEPTHS

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def read_folder(path: str | Path) -> dict[str, Any]:
    """{"model": state under our names, "config": `DeformableConfig` as values, "classes": names}; nothing is downloaded.

    Raises:
        UserError: no config or weights there, or a variant that is not supported.
    """
    path = Path(path)
    values = _json(path / "config.json")
    state = {our_head(name): tensor for name, tensor in _weights(path).items()}
    head = state.get("class_embed.0.weight")
    if head is None:
        raise UserError(f"{path}: no class head; it must hold a DeformableDetrForObjectDetection.")
    config = _config(values, len(head), path)
    if config.with_box_refine:
        _untie(state, config.dec_layers + config.two_stage)
    content = {"model": from_transformers(state, config.backbone != TRANSFORMERS), "config": config.to_dict()}
    labels = {int(row): str(name) for row, name in (values.get("id2label") or {}).items()}
    if labels:
        content["classes"] = {"names": _distinct([labels.get(i, f"row_{i}") for i in range(len(head))])}
    return content


def _untie(state: dict[str, Tensor], heads: int) -> None:
    """Adds the heads that a file leaves out because they equal the first."""
    for name in [n for n in state if n.startswith(("class_embed.0.", "bbox_embed.0."))]:
        kind, _, leaf = name.split(".", 2)
        for number in range(1, heads):
            state.setdefault(f"{kind}.{number}.{leaf}", state[name])


def _config(values: dict[str, Any], classes: int, path: Path) -> DeformableConfig:
    from transformers import DeformableDetrConfig

    values = _without_lookup(values, path)
    try:
        theirs = DeformableDetrConfig.from_dict(values)
    except Exception as error:  # its validators raise several kinds; the reason is passed on
        raise UserError(f"{path}/config.json: {str(error).splitlines()[0]}.") from None
    pairs = (("encoder_ffn_dim", "decoder_ffn_dim"), ("encoder_attention_heads", "decoder_attention_heads"))
    for one, other in pairs:
        if getattr(theirs, one) != getattr(theirs, other):
            raise UserError(f"{path}/config.json: `{one}` and `{other}` must be equal here.")
    for name, wanted in {"dilation": False, "position_embedding_type": "sine", "activation_function": "relu"}.items():
        if getattr(theirs, name) != wanted:
            raise UserError(
                f"{path}/config.json: `{name}` = {getattr(theirs, name)!r} is not supported, only {wanted!r} is."
            )
    return DeformableConfig(
        num_classes=classes,
        num_feature_levels=theirs.num_feature_levels,
        hidden_dim=theirs.d_model,
        nheads=theirs.encoder_attention_heads,
        dim_feedforward=theirs.encoder_ffn_dim,
        enc_layers=theirs.encoder_layers,
        dec_layers=theirs.decoder_layers,
        enc_n_points=theirs.encoder_n_points,
        dec_n_points=theirs.decoder_n_points,
        dropout=theirs.dropout,
        num_queries=theirs.two_stage_num_proposals if theirs.two_stage else theirs.num_queries,
        with_box_refine=theirs.with_box_refine,
        two_stage=theirs.two_stage,
        **_backbone(theirs.backbone_config, path),
    )


def _without_lookup(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config with its backbone in the words of transformers 5, which looks older ones up on the Hub."""
    name = values.get("backbone")
    if values.get("backbone_config") is not None or name is None:
        return values
    if not values.get("use_timm_backbone", True):
        raise UserError(f"{path}/config.json: backbone {name!r} would be downloaded; only built-in ones are read.")
    single = values.get("num_feature_levels", 4) == 1
    stages = (values.get("backbone_kwargs") or {}).get("out_indices") or ([4] if single else [2, 3, 4])
    known = {n: v for n, v in values.items() if n not in ("backbone", "backbone_kwargs", "use_timm_backbone")}
    return known | {"backbone_config": {"model_type": "timm_backbone", "backbone": name, "out_indices": stages}}


def _backbone(theirs: Any, path: Path) -> dict[str, Any]:
    """The backbone's fields: ours for timm's ResNet-50 and 101, whose keys are torchvision's, else transformers'."""
    name = getattr(theirs, "backbone", None) or ""
    if theirs.model_type == "timm_backbone" and name in DEPTHS:
        return {"backbone": name, "return_interm_indices": tuple(i - 1 for i in theirs.out_indices)}
    values = theirs.to_dict() | {"use_pretrained_backbone": False}
    stages = tuple(range(4 - len(theirs.out_indices), 4))
    return {
        "backbone": TRANSFORMERS,
        "backbone_config": json.loads(json.dumps(values)),
        "return_interm_indices": stages,
    }


def _weights(path: Path) -> dict[str, Tensor]:
    for pattern in WEIGHTS:
        files = sorted(path.glob(pattern))
        if files:
            state: dict[str, Tensor] = {}
            for file in files:
                state |= read_checkpoint(file).state
            return state
    raise UserError(f"{path} holds no weights: expected model.safetensors beside config.json.")


def _distinct(names: list[str]) -> list[str]:
    """Names that differ: COCO's lists call several rows "N/A"."""
    return [name if names.count(name) == 1 else f"row_{i}" for i, name in enumerate(names)]


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no `name: value` table.")
    return values
