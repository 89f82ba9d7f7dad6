"""Every constant of a Deformable DETR, under its published name, with the published default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError
from ks_detection.models.parts.config import PyramidConfig

TRANSFORMERS = "transformers"  # the backbone of a Hugging Face folder that is none of ours
# What the published code or transformers can also do and this one does not: a config that asks for it is refused.
FIXED = {"masks": False, "dilation": False, "position_embedding": "sine", "frozen_weights": None}


@dataclass
class DeformableConfig(PyramidConfig):
    """A Deformable DETR; names and defaults are those of the published ResNet-50 run.

    Raises:
        UserError: naming the field, for a value that cannot be built.
    """

    modelname, fixed, more_backbones = "deformable_detr", FIXED, (TRANSFORMERS,)

    num_classes: int = field(default=91, metadata={"help": "logit rows; COCO ids run to 90, so 91"})
    backbone: str = field(default="resnet50", metadata={"help": "a published name, mobilenet_v2, tiny, timm:NAME"})
    backbone_config: dict[str, Any] | None = None  # with backbone "transformers": that library's own config
    return_interm_indices: tuple[int, ...] = (1, 2, 3)  # backbone stages used; (3,) for a single scale
    num_feature_levels: int = 4
    use_checkpoint: bool = False  # Swin only
    drop_path_rate: float = 0.2  # Swin only
    hidden_dim: int = 256
    nheads: int = 8
    dim_feedforward: int = 1024
    enc_layers: int = 6
    dec_layers: int = 6
    enc_n_points: int = 4
    dec_n_points: int = 4
    dropout: float = 0.1
    num_queries: int = 300
    num_select: int = 100  # detections kept per image
    with_box_refine: bool = False  # every layer has heads of its own and refines the boxes of the layer before
    two_stage: bool = False  # queries start from the encoder's best tokens; needs with_box_refine
    aux_loss: bool = True  # False (CL-DETR's forgetting): the last decoder layer alone is trained on
    set_cost_class: float = 2.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    cls_loss_coef: float = 2.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    focal_alpha: float = 0.25
    lora_rank: int = 0  # above 0: adapters on every FFN linear, in loralib's layout
    lora_alpha: float = 1.0  # loralib's default, which the published runs never changed: the scale is 1 / rank

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_local(self.backbone_config or {})
        if self.hidden_dim % 32 or self.hidden_dim % self.nheads:
            raise UserError(
                f"`hidden_dim` must divide by 32 (groups of the norms) and by `nheads` ({self.nheads}), got {self.hidden_dim}."
            )
        if self.two_stage and not self.with_box_refine:
            raise UserError("`two_stage` needs `with_box_refine` = True, as published.")


def _check_local(values: dict[str, Any]) -> None:
    """Raises UserError for a backbone of transformers that would be fetched, or bring code of its own."""
    if "auto_map" in values:
        raise UserError("config: `backbone_config` has an `auto_map`, code of its own, which is not run; remove it.")
    for name, value in values.items():
        if name != "_name_or_path" and isinstance(value, str) and (":" in value or "/" in value):
            raise UserError(
                f"config: `backbone_config` has {name} = {value!r}, which would be downloaded; only built-in ones are read."
            )
