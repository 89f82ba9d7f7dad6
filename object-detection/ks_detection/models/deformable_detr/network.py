"""transformers' DeformableDetrModel with the compiled operator in it, started as published."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from common.errors import UserError
from common.layers import use_fast_linears
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.parts.backbones import build_backbone
from ks_detection.models.parts.levels import input_projections
from ks_detection.models.parts.sampling import Sampling


def build_parts(config: DeformableConfig) -> tuple[nn.Module, nn.Module]:
    """(backbone, transformers' DeformableDetrModel without it), with fresh weights.

    Raises:
        UserError: the installed transformers has another Deformable DETR inside.
    """
    from transformers import DeformableDetrModel

    network = DeformableDetrModel(transformers_config(config))
    if not hasattr(network.decoder.layers[0], "mlp") or not hasattr(network.backbone, "model"):
        import transformers

        raise UserError(
            f"transformers {transformers.__version__} builds its Deformable DETR of other parts; "
            "run: pip install -U 'transformers>=5.23'."
        )
    del network.backbone
    backbone = build_backbone(config)
    network.input_proj = input_projections(backbone.channels, config, groups=32)
    _initialise(network)
    for layer in network.modules():
        if hasattr(layer, "sampling_offsets"):
            layer.attn = Sampling()
    use_fast_linears(network)
    return backbone, network


def transformers_config(config: DeformableConfig) -> Any:
    """The same model in transformers' words; its backbone is the smallest of theirs, which ours replaces."""
    from transformers import DeformableDetrConfig, ResNetConfig

    stages = [f"stage{stage + 1}" for stage in config.return_interm_indices]
    stand_in = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=stages
    )
    return DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=stand_in,
        num_labels=config.num_classes,
        num_queries=config.num_queries,
        d_model=config.hidden_dim,
        encoder_layers=config.enc_layers,
        decoder_layers=config.dec_layers,
        encoder_ffn_dim=config.dim_feedforward,
        decoder_ffn_dim=config.dim_feedforward,
        encoder_attention_heads=config.nheads,
        decoder_attention_heads=config.nheads,
        encoder_n_points=config.enc_n_points,
        decoder_n_points=config.dec_n_points,
        num_feature_levels=config.num_feature_levels,
        dropout=config.dropout,
        attention_dropout=config.dropout,  # published; transformers' default is 0
        activation_dropout=config.dropout,
        with_box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        two_stage_num_proposals=config.num_queries,
    )


def _initialise(network: nn.Module) -> None:
    """Draws the start as published: Xavier where transformers draws from N(0, 0.02), queries from N(0, 1).

    Deformable attention (rings of offsets) and the level embedding start alike in both.
    """
    deformable = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    packed = ("q_proj", "k_proj", "v_proj")  # one matrix of three times the height when published
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and leaf not in deformable:
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.5) if leaf in packed else 1.0)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
