"""Whether a checkpoint is a Deformable DETR, and its config, read off keys and shapes."""

from __future__ import annotations

from torch import Tensor

from common.errors import UserError
from ks_detection.checkpoints.infer import count, get, infer_backbone
from ks_detection.deformable_detr.config import DeformableConfig

WHAT = "no Deformable DETR"
WHOLE = "no whole Deformable DETR"
HEADS = 8  # not visible in any shape; every published model has 8


def is_deformable(state: dict[str, Tensor]) -> bool:
    """Whether these are published keys of a Deformable DETR (a DINO has `label_enc` and learned contents)."""
    own = ("query_embed.weight", "transformer.pos_trans.weight")
    return "transformer.level_embed" in state and any(name in state for name in own)


def is_refined(state: dict[str, Tensor]) -> bool:
    """Whether published keys are of a model with iterative box refinement."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in state)


def infer_config(state: dict[str, Tensor]) -> DeformableConfig:
    """Backbone, levels, classes, queries, depths, widths and variant of a state under our names.

    Raises:
        UserError: a key that must be there is missing, or the backbone is not one that shapes can tell.
    """
    levels = count(state, r"network\.input_proj\.(\d+)\.0\.weight", WHAT)
    stages = sum(get(state, f"network.input_proj.{i}.0.weight", WHOLE).shape[-1] == 1 for i in range(levels))
    classes, width = get(state, "class_embed.0.weight", WHOLE).shape
    points = []
    for place in ("encoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"):
        weights = get(state, f"network.{place}.attention_weights.bias", WHOLE).shape[0]
        if weights % (HEADS * levels):
            raise UserError(f"checkpoint: attention shapes do not fit {HEADS} heads; give a config.")
        points.append(weights // (HEADS * levels))
    two_stage = "network.pos_trans.weight" in state
    config = DeformableConfig(
        num_classes=classes,
        backbone=infer_backbone(state),
        return_interm_indices=tuple(range(4 - stages, 4)),
        num_feature_levels=levels,
        hidden_dim=width,
        nheads=HEADS,
        dim_feedforward=get(state, "network.encoder.layers.0.mlp.fc1.weight", WHOLE).shape[0],
        enc_layers=count(state, r"network\.encoder\.layers\.(\d+)\.final_layer_norm\.weight", WHAT),
        dec_layers=count(state, r"network\.decoder\.layers\.(\d+)\.final_layer_norm\.weight", WHAT),
        enc_n_points=points[0],
        dec_n_points=points[1],
        with_box_refine="class_embed.1.weight" in state,
        two_stage=two_stage,
        lora_rank=next((t.shape[0] for name, t in state.items() if name.endswith("lora_A")), 0),
    )
    if not two_stage:
        config.num_queries = get(state, "network.query_position_embeddings.weight", WHOLE).shape[0]
    return config
