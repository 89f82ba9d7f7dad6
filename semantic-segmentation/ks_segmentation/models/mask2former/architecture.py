"""transformers' Mask2Former of the sizes of a config."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.backbones.mobilenet import WIDTHS, MobileNet
from common.errors import UserError
from common.layers import fast, use_fast_linears
from common.lazy import Module
from ks_segmentation.config.load import Config
from ks_segmentation.models.mask2former.swin import use_fast_blocks

STAGES = ("stage1", "stage2", "stage3", "stage4")
RESNET_DEPTHS = {
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}
BACKBONES = ("D2SwinTransformer", "build_resnet_backbone", "mobilenet_v2")
# What transformers' modules or the published models fix; any other value is an error, not a silent change.
FIXED: dict[str, tuple[Any, ...]] = {
    "VERSION": (1, 2),
    "MODEL.META_ARCHITECTURE": ("MaskFormer",),
    "MODEL.SEM_SEG_HEAD.NAME": ("MaskFormerHead",),
    "MODEL.SEM_SEG_HEAD.NORM": ("GN",),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4,),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder",),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (("res2", "res3", "res4", "res5"),),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": (("res3", "res4", "res5"),),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": (4,),
    "MODEL.SEM_SEG_HEAD.LORA_POS": ("FFN",),
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": ("MultiScaleMaskedTransformerDecoder",),
    "MODEL.MASK_FORMER.PRE_NORM": (False,),
    "MODEL.BACKBONE.NAME": BACKBONES,
    "MODEL.SWIN.PATCH_SIZE": (4,),
    "MODEL.SWIN.PATCH_NORM": (True,),
    "MODEL.SWIN.APE": (False,),
    "MODEL.SWIN.OUT_FEATURES": (("res2", "res3", "res4", "res5"),),
    "MODEL.RESNETS.DEPTH": tuple(RESNET_DEPTHS),
    "MODEL.RESNETS.STEM_TYPE": ("basic",),
    "MODEL.RESNETS.OUT_FEATURES": (("res2", "res3", "res4", "res5"),),
    "MODEL.RESNETS.NUM_GROUPS": (1,),
    "MODEL.RESNETS.RES4_DILATION": (1,),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "GN"),
}


def setting(config: Config, name: str) -> Any:
    """The value of a dotted name."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def check(config: Config) -> None:
    """Raises UserError for a setting that asks for what is not built here."""
    for name, allowed in FIXED.items():
        value = setting(config, name)
        if value not in allowed:
            raise UserError(f"{name} must be {' or '.join(str(a) for a in allowed)} here, got {value!r}.")
    head, former = config.MODEL.SEM_SEG_HEAD, config.MODEL.MASK_FORMER
    if head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS != former.NHEADS:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS ({head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS}) "
            f"and MODEL.MASK_FORMER.NHEADS ({former.NHEADS}) must be equal."
        )
    for name, unit in (("SEM_SEG_HEAD.CONVS_DIM", 32), ("MASK_FORMER.HIDDEN_DIM", former.NHEADS)):
        value = setting(config.MODEL, name)
        if value < unit or value % unit:
            raise UserError(f"MODEL.{name} must be a multiple of {unit}, got {value}.")
    if head.NUM_CLASSES < 1 or former.DEC_LAYERS < 1 or former.NUM_OBJECT_QUERIES < 1:
        raise UserError("NUM_CLASSES, DEC_LAYERS and NUM_OBJECT_QUERIES must be at least 1.")


def network(config: Config) -> nn.Module:
    """transformers' Mask2FormerForUniversalSegmentation with the sizes of `config` and random weights."""
    # here, because they take seconds to import
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
    from transformers.utils import logging as hf_logging

    head, former = config.MODEL.SEM_SEG_HEAD, config.MODEL.MASK_FORMER
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it warns of every backbone but Swin
    try:
        made = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(
                backbone_config=_backbone_config(config),
                num_labels=head.NUM_CLASSES,
                feature_size=head.CONVS_DIM,
                mask_feature_size=head.MASK_DIM,
                hidden_dim=former.HIDDEN_DIM,
                encoder_layers=head.TRANSFORMER_ENC_LAYERS,
                encoder_feedforward_dim=head.TRANSFORMER_ENC_FEEDFORWARD,
                decoder_layers=former.DEC_LAYERS,
                num_attention_heads=former.NHEADS,
                dim_feedforward=former.DIM_FEEDFORWARD,
                num_queries=former.NUM_OBJECT_QUERIES,
                dropout=former.DROPOUT,
                enforce_input_projection=former.ENFORCE_INPUT_PROJ,
                ignore_value=head.IGNORE_VALUE,
            )
        )
    finally:
        hf_logging.set_verbosity(level)
    _initialise(made)
    _finish_backbone(made.model.pixel_level_module, config)
    use_fast_linears(made)
    del made.criterion  # ours replaces it; its class weights would be a second copy
    return made


def _initialise(network: nn.Module) -> None:
    """Draws the start of the pixel decoder and the class layer as published; transformers draws them from N(0, 0.02),
    which leaves its feed-forward layers nearly silent at first."""
    decoder = network.model.pixel_level_module.decoder
    for projection in decoder.input_projections:
        nn.init.xavier_uniform_(projection[0].weight)
    for layer in decoder.encoder.layers:
        for linear in (layer.fc1, layer.fc2):
            nn.init.xavier_uniform_(linear.weight)
    for convolution in (decoder.adapter_1[0], decoder.layer_1[0], decoder.mask_projection):
        nn.init.kaiming_uniform_(convolution.weight, a=1)
    network.class_predictor.reset_parameters()


def _backbone_config(config: Config) -> Any:
    from transformers import ResNetConfig, SwinConfig  # takes seconds to import

    if config.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        swin = config.MODEL.SWIN
        return SwinConfig(
            image_size=swin.PRETRAIN_IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            embed_dim=swin.EMBED_DIM,
            depths=list(swin.DEPTHS),
            num_heads=list(swin.NUM_HEADS),
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            hidden_dropout_prob=swin.DROP_RATE,
            attention_probs_dropout_prob=swin.ATTN_DROP_RATE,
            drop_path_rate=swin.DROP_PATH_RATE,
            out_features=list(STAGES),
        )
    resnet = config.MODEL.RESNETS
    depths, kind = RESNET_DEPTHS[resnet.DEPTH]
    widths = [resnet.RES2_OUT_CHANNELS * 2**i for i in range(4)]
    if config.MODEL.BACKBONE.NAME == "mobilenet_v2":  # a stand-in of the same widths, replaced afterwards
        depths, kind, widths = (1, 1, 1, 1), "basic", list(WIDTHS)
    return ResNetConfig(
        embedding_size=resnet.STEM_OUT_CHANNELS,
        hidden_sizes=widths,
        depths=list(depths),
        layer_type=kind,
        downsample_in_bottleneck=resnet.STRIDE_IN_1X1,
        out_features=list(STAGES),
    )


def _finish_backbone(pixel_level: nn.Module, config: Config) -> None:
    """Makes the backbone what the config says where transformers has no switch for it."""
    backbone = pixel_level.encoder
    if config.MODEL.BACKBONE.NAME == "mobilenet_v2":
        pixel_level.encoder = MobileNet()
    elif config.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        if hasattr(backbone, "swin"):
            backbone.swin.layernorm = nn.Identity()  # its output is used by nothing
        if fast:
            use_fast_blocks(backbone)
        if config.MODEL.SWIN.USE_CHECKPOINT:
            # the reentrant kind gives adapters behind a frozen input no gradient at all
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        _normalise_with(backbone, config.MODEL.RESNETS.NORM)


def _normalise_with(backbone: nn.Module, norm: str) -> None:
    make = {
        "FrozenBN": lambda channels: Module("torchvision.ops").FrozenBatchNorm2d(channels, eps=1e-5),
        "GN": lambda channels: nn.GroupNorm(min(32, channels // 2), channels),
        "SyncBN": nn.SyncBatchNorm,
        "BN": nn.BatchNorm2d,
    }[norm]
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, make(child.num_features))
