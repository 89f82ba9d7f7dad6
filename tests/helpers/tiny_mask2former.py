"""A Mask2Former of a few thousand weights for the tests of segmentation."""

from __future__ import annotations

import torch
from ks_segmentation.config.load import load_config
from ks_segmentation.models.mask2former.model import build_mask2former

COMMON = [
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM", 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 2,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_FEEDFORWARD", 48,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 4,
    "MODEL.MASK_FORMER.NHEADS", 4,
    "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 40,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 12,
    "MODEL.MASK_FORMER.DEC_LAYERS", 4,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 200,
]  # fmt: skip
SWIN = [
    "MODEL.BACKBONE.NAME", "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM", 16,
    "MODEL.SWIN.DEPTHS", [1, 2, 1, 1],
    "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4],
    "MODEL.SWIN.WINDOW_SIZE", 4,
]  # fmt: skip
RESNET_18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
RESNET = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]


def config(backbone=SWIN, *more):
    return load_config(None, [*COMMON, *backbone, *more])


def model(backbone=SWIN, *more, seed=0):
    """A tiny model in eval mode, the same for the same seed."""
    torch.manual_seed(seed)
    made = build_mask2former(config(backbone, *more)).eval()
    with torch.no_grad():  # biases and statistics away from their trivial start, so that a swapped key shows
        for name, value in [*made.named_parameters(), *made.named_buffers()]:
            if value.is_floating_point() and value.dim() == 1 and name not in ("pixel_mean", "pixel_std"):
                value += 0.1 * torch.rand_like(value)
    return made
