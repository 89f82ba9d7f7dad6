"""Detectors of transformers, small enough for tests, by their `model_type`."""

from __future__ import annotations

import torch

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
STAGES = ["stage2", "stage3", "stage4"]
RT = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32],
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_queries": 12, "num_denoising": 6,
}  # fmt: skip
HGNET = {
    "embedding_size": 8, "stem_channels": [3, 8, 8], "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
    "stage_in_channels": [8, 8, 16, 24], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 24, 32],
    "stage_num_blocks": [1, 1, 1, 1], "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True], "stage_kernel_size": [3, 3, 5, 5], "stage_numb_of_layers": [2, 2, 2, 2],
    "out_features": STAGES,
}  # fmt: skip
LW = {
    "d_model": 32, "decoder_ffn_dim": 40, "decoder_layers": 2, "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4, "decoder_n_points": 2, "num_queries": 12, "group_detr": 2, "c2f_num_blocks": 1,
}  # fmt: skip
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64}
FINE = {"hidden_expansion": 0.5, "depth_mult": 0.34, "max_num_bins": 8, "lqe_hidden_dim": 16}


def tiny_config(kind: str, classes: int = 3):
    """The config of a small detector."""
    import transformers as hf

    def resnet(name):
        return getattr(hf, name)(**RESNET, out_features=STAGES)

    makers = {
        "rt_detr_v2": lambda: hf.RTDetrV2Config(backbone_config=resnet("RTDetrResNetConfig"), **RT),
        "d_fine": lambda: hf.DFineConfig(backbone_config=hf.HGNetV2Config(**HGNET), decoder_n_points=[2, 3, 2], **RT, **FINE),
        "deimv2": lambda: hf.Deimv2Config(backbone_config=hf.HGNetV2Config(**HGNET), **RT, **FINE),
        "rf_detr": lambda: hf.RfDetrConfig(
            backbone_config=hf.RfDetrDinov2Config(**VIT, patch_size=8, num_windows=2, out_indices=[1, 2]), **LW
        ),
        "lw_detr": lambda: hf.LwDetrConfig(
            backbone_config=hf.LwDetrViTConfig(
                **VIT, patch_size=8, pretrain_image_size=64, num_windows=4, window_block_indices=[0], out_indices=[1, 2]
            ),
            projector_scale_factors=[1.0], **LW,
        ),
        "deformable_detr": lambda: hf.DeformableDetrConfig(
            use_timm_backbone=False, backbone_config=resnet("ResNetConfig"), num_feature_levels=3, d_model=32,
            encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40,
            decoder_ffn_dim=40, num_queries=12, with_box_refine=True, auxiliary_loss=True,
        ),
    }  # fmt: skip
    config = makers[kind]()
    config.id2label = dict(enumerate("abcdefghij"[:classes]))
    config.label2id = {name: row for row, name in config.id2label.items()}
    return config


def tiny_hub(kind: str, classes: int = 3, seed: int = 0, **changes):
    """transformers' own model in eval mode, with values that tell its tokens apart. changes: of its config."""
    from transformers import AutoModelForObjectDetection

    torch.manual_seed(seed)
    config = tiny_config(kind, classes)
    config.update(changes)
    model = AutoModelForObjectDetection.from_config(config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("weight", "bias")) and "norm" not in name:
                value += 0.2 * torch.randn_like(value)
            elif name.endswith("running_var"):
                value.uniform_(0.3, 0.6)
    return model
