"""A Deformable DETR small enough for tests, ours and transformers'."""

import torch
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.detectors import build_detector

VARIANTS = {
    "plain": {},
    "refined": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}


def tiny_deformable_config(**changes) -> DeformableConfig:
    values = {
        "num_classes": 5,
        "backbone": "tiny",
        "hidden_dim": 32,
        "nheads": 4,
        "dim_feedforward": 48,
        "enc_layers": 2,
        "dec_layers": 3,
        "num_queries": 12,
        "num_select": 30,
        "dropout": 0.0,
    }
    return DeformableConfig(**(values | changes))


def tiny_deformable(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return build_detector(tiny_deformable_config(**changes))


def lively(model):
    """The model with heads that say something (they start at zero), so that equalities mean something."""
    generator = torch.Generator().manual_seed(5)
    for parameter in (*model.class_embed.parameters(), *model.bbox_embed.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def theirs(**changes):
    """transformers' own small detector, every head with values of its own."""
    import transformers as hf

    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    torch.manual_seed(1)
    config = hf.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, num_feature_levels=4, d_model=32, encoder_layers=2,
        decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        num_queries=12, two_stage_num_proposals=12, num_labels=5, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    model = hf.DeformableDetrForObjectDetection(config)
    model.model.decoder.bbox_embed = model.bbox_embed if config.with_box_refine else None
    model.model.decoder.class_embed = model.class_embed if config.two_stage else None
    first = None
    for heads in (model.class_embed, model.bbox_embed):
        for head in heads:
            values = [torch.randn(p.shape) * 0.2 for p in head.parameters()]
            first = values if head is heads[0] else first
            for parameter, value in zip(head.parameters(), values if config.with_box_refine else first, strict=True):
                parameter.data = value
    for module in model.model.modules():  # transformers starts these at zero
        if hasattr(module, "attention_weights"):
            torch.nn.init.normal_(module.attention_weights.weight, std=0.3)
            torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
        if hasattr(module, "running_var"):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
