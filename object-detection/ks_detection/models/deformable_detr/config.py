"""Every constant of a Deformable DETR, under its published name, with the published default."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError
from ks_detection.models.parts.config import PyramidConfig

# What the published code or transformers can also do and this one does not: a config that asks for it is refused.
FIXED = {"masks": False, "dilation": False, "position_embedding": "sine", "frozen_weights": None}


@dataclass
class DeformableConfig(PyramidConfig):
    """A Deformable DETR; names and defaults are those of the published ResNet-50 run."""

    modelname, fixed = "deformable_detr", FIXED

    dropout: float = 0.1
    with_box_refine: bool = False  # every layer has heads of its own and refines the boxes of the layer before
    two_stage: bool = False  # queries start from the encoder's best tokens; needs with_box_refine
    aux_loss: bool = True  # False (CL-DETR's forgetting): the last decoder layer alone is trained on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % 32 or self.hidden_dim % self.nheads:
            raise UserError(
                f"`hidden_dim` must divide by 32 (groups of the norms) and by `nheads` ({self.nheads}), got {self.hidden_dim}."
            )
        if self.two_stage and not self.with_box_refine:
            raise UserError("`two_stage` needs `with_box_refine` = True, as published.")
