"""A Deformable DETR small enough for tests, ours and transformers'."""

import re

import torch
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.detectors import build_detector
from ks_detection.models.parts.levels import input_projections
from tiny_dino import TINY

VARIANTS = {
    "plain": {},
    "refined": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}


def tiny_deformable_config(**changes) -> DeformableConfig:
    return DeformableConfig(**(TINY | {"num_queries": 12, "dropout": 0.0} | changes))


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
    config.tie_word_embeddings = True  # as published folders say: heads that are left out equal others
    return model.eval()


class Backbone(torch.nn.Module):
    """transformers' backbone in the place of one of ours."""

    def __init__(self, model):
        super().__init__()
        self.model, self.channels = model.model.backbone.model, model.model.backbone.intermediate_channel_sizes

    def forward(self, images):
        return list(self.model(images).feature_maps)


def as_ours(model):
    """Our detector with the weights of transformers' one."""
    names = ("with_box_refine", "two_stage")
    ours = tiny_deformable(**{name: getattr(model.config, name) for name in names})
    ours.backbone = Backbone(model)
    ours.network.input_proj = input_projections(ours.backbone.channels, ours.config, groups=32)
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^model\.backbone\.(?:conv_encoder\.)?model\.", "backbone.model.", name)
        name = re.sub(r"^(?:model\.decoder\.)?((?:class|bbox)_embed\.)", r"\1", name)
        state[re.sub(r"^model\.", "network.", name)] = value
    ours.load_state_dict({name: value for name, value in state.items() if name in ours.state_dict()})
    return ours.eval()
