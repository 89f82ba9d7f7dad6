"""What differs between the detectors of transformers that share `loss`, `logits` and `pred_boxes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

HEADS = r"(^|\.)((enc_out_)?class_embed(\.\d+)?|enc_score_head)$"


class Family(NamedTuple):
    """A `model_type` of transformers.

    kind:       the class of its detector there.
    layer_dim:  dimension of the layers in the class logits and boxes that its loss is given.
    cells:      config -> pixels that height and width are multiples of.
    costs:      beginning of the names of its matching costs in the config.
    class_terms: beginning of the names of the classification terms of its loss.
    class_weight: name in the config of their factor in the total; "": they are weighted already.
    labels:     embedding with a row per class, for denoising; its last row means no class. "": none.
    padded:     padding masks are read; else all images of a batch are stretched to one size.
    normalised: whether images are normalised with ImageNet's statistics where no preprocessor_config.json says so.
    ffn:        pattern of feed-forward linears besides those with the usual names.
    """

    kind: str
    layer_dim: int
    cells: Callable[[Any], int]
    costs: str = ""
    class_terms: str = "loss_ce"
    class_weight: str = "class_loss_coefficient"
    labels: str = ""
    padded: bool = False
    normalised: bool = True
    ffn: str = r"\.mlp\.layers\.\d+$"


def _stride(config: Any) -> int:
    return max(config.feat_strides)


def _windows(config: Any) -> int:
    vit = config.backbone_config
    return vit.patch_size * getattr(vit, "num_windows_side", vit.num_windows)


RT = {"layer_dim": 1, "cells": _stride, "costs": "matcher_", "class_weight": "", "normalised": False}
RT |= {"class_terms": "loss_vfl", "labels": "model.denoising_class_embed"}
FAMILIES = {
    "rf_detr": Family("RfDetrForObjectDetection", 0, _windows),
    "lw_detr": Family("LwDetrForObjectDetection", 0, _windows),
    "rt_detr_v2": Family("RTDetrV2ForObjectDetection", **RT),
    "d_fine": Family("DFineForObjectDetection", **RT),
    "deimv2": Family("Deimv2ForObjectDetection", **(RT | {"class_terms": "loss_mal"})),
    "deformable_detr": Family("DeformableDetrForObjectDetection", 0, lambda config: 1, class_weight="", padded=True),
}
