"""Every setting a Mask2Former config may hold, with the value it has when no file names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Tables of other architectures and tools; whatever stands in them is accepted and has no effect here.
OPEN = (
    "GLOBAL",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.FPN",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.MASK_ON",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
)
RENAMED = {"MODEL.WEIGHT": "MODEL.WEIGHTS"}  # spelling of config version 1

RESNETS: dict[str, Any] = {
    "DEPTH": 50,
    "STEM_TYPE": "basic",
    "STEM_OUT_CHANNELS": 64,
    "RES2_OUT_CHANNELS": 256,
    "OUT_FEATURES": ("res2", "res3", "res4", "res5"),
    "NORM": "FrozenBN",
    "STRIDE_IN_1X1": False,
    "NUM_GROUPS": 1,
    "RES4_DILATION": 1,
    "RES5_DILATION": 1,
}
SWIN: dict[str, Any] = {
    "PRETRAIN_IMG_SIZE": 224,
    "PATCH_SIZE": 4,
    "EMBED_DIM": 96,
    "DEPTHS": (2, 2, 6, 2),
    "NUM_HEADS": (3, 6, 12, 24),
    "WINDOW_SIZE": 7,
    "MLP_RATIO": 4.0,
    "QKV_BIAS": True,
    "DROP_RATE": 0.0,
    "ATTN_DROP_RATE": 0.0,
    "DROP_PATH_RATE": 0.3,
    "APE": False,
    "PATCH_NORM": True,
    "OUT_FEATURES": ("res2", "res3", "res4", "res5"),
    "USE_CHECKPOINT": False,
}
SEM_SEG_HEAD: dict[str, Any] = {
    "NAME": "MaskFormerHead",
    "IN_FEATURES": ("res2", "res3", "res4", "res5"),
    "IGNORE_VALUE": 255,
    "NUM_CLASSES": 150,
    "CONVS_DIM": 256,
    "MASK_DIM": 256,
    "NORM": "GN",
    "COMMON_STRIDE": 4,
    "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "TRANSFORMER_ENC_LAYERS": 6,
    "TRANSFORMER_ENC_FEEDFORWARD": 1024,  # ours: the original has the number in its code
    "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ("res3", "res4", "res5"),
    "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "LORA_RANK": 0,  # above 0 in a swap config: checkpoints may have fewer classes
    "LORA_POS": "FFN",
}
MASK_FORMER: dict[str, Any] = {
    "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "DEEP_SUPERVISION": True,
    "NO_OBJECT_WEIGHT": 0.1,
    "CLASS_WEIGHT": 2.0,
    "MASK_WEIGHT": 5.0,
    "DICE_WEIGHT": 5.0,
    "HIDDEN_DIM": 256,
    "NUM_OBJECT_QUERIES": 100,
    "NHEADS": 8,
    "DROPOUT": 0.0,
    "DIM_FEEDFORWARD": 2048,
    "DEC_LAYERS": 10,
    "PRE_NORM": False,
    "ENFORCE_INPUT_PROJ": False,
    "SIZE_DIVISIBILITY": 32,
    "TRAIN_NUM_POINTS": 12544,
    "OVERSAMPLE_RATIO": 3.0,
    "IMPORTANCE_SAMPLE_RATIO": 0.75,
    "TEST": {"SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False},
}
SOLVER: dict[str, Any] = {
    "BASE_LR": 1e-4,
    "WEIGHT_DECAY": 0.05,
    "IMS_PER_BATCH": 16,
    "MAX_ITER": 160_000,
    "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_VALUE": 0.01},
    "AMP": {"ENABLED": False},
}
INPUT: dict[str, Any] = {
    "MIN_SIZE_TRAIN": tuple(64 * n for n in range(5, 21)),
    "MAX_SIZE_TRAIN": 2560,
    "MIN_SIZE_TEST": 640,
    "MAX_SIZE_TEST": 2560,
    "CROP": {"ENABLED": True, "SIZE": (640, 640), "SINGLE_CATEGORY_MAX_AREA": 1.0},
    "COLOR_AUG_SSD": True,
    "RANDOM_FLIP": "horizontal",
    "FORMAT": "RGB",
}
TEST: dict[str, Any] = {
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (320, 480, 640, 800, 960, 1120),
        "MAX_SIZE": 4480,
        "FLIP": True,
    },
    "SLIDING_WINDOW": 0,  # ours: side of the square windows in pixels, 0 for the whole image at once
}
DEFAULTS: dict[str, Any] = {
    "VERSION": 2,
    "MODEL": {
        "META_ARCHITECTURE": "MaskFormer",
        "WEIGHTS": "",
        "PIXEL_MEAN": (123.675, 116.28, 103.53),
        "PIXEL_STD": (58.395, 57.12, 57.375),
        "BACKBONE": {"NAME": "build_resnet_backbone"},
        "RESNETS": RESNETS,
        "SWIN": SWIN,
        "SEM_SEG_HEAD": SEM_SEG_HEAD,
        "MASK_FORMER": MASK_FORMER,
    },
    "INPUT": INPUT,
    "SOLVER": SOLVER,
    "TEST": TEST,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "LEARN_ALPHA": 0.01,
    "LEARN_BETA": 0.9,
    "FORGET_BND": 115.0,
    "FORGET_BETA": 0.2,
}

# Settings of detectron2 that nothing here reads, by table; accepted with any value, so that published files load.
_UNREAD: dict[str, str] = {
    "": "CUDNN_BENCHMARK FLOAT32_PRECISION FORGET_ALPHA VIS_PERIOD",
    "DATALOADER": (
        "ASPECT_RATIO_GROUPING FILTER_EMPTY_ANNOTATIONS NUM_WORKERS RANDOM_SUBSET_RATIO REPEAT_SQRT "
        "REPEAT_THRESHOLD SAMPLER_TRAIN"
    ),
    "DATASETS": (
        "LEARN_DATASET_NAME PRECOMPUTED_PROPOSAL_TOPK_TEST PRECOMPUTED_PROPOSAL_TOPK_TRAIN PROPOSAL_FILES_TEST "
        "PROPOSAL_FILES_TRAIN SAMPLE_WEIGHTS TEST TRAIN"
    ),
    "INPUT.CROP": "TYPE",
    "INPUT": (
        "DATASET_MAPPER_NAME IMAGE_SIZE MASK_FORMAT MAX_SCALE MIN_SCALE MIN_SIZE_TRAIN_SAMPLING SIZE_DIVISIBILITY"
    ),
    "MODEL.BACKBONE": "FREEZE_AT",
    "MODEL": "DEVICE",
    "MODEL.MASK_FORMER": "ENC_LAYERS TRANSFORMER_IN_FEATURE",
    "MODEL.MASK_FORMER.TEST": "INSTANCE_ON OBJECT_MASK_THRESHOLD OVERLAP_THRESHOLD PANOPTIC_ON SEMANTIC_ON",
    "MODEL.RESNETS": "DEFORM_MODULATED DEFORM_NUM_GROUPS DEFORM_ON_PER_STAGE RES5_MULTI_GRID WIDTH_PER_GROUP",
    "MODEL.SEM_SEG_HEAD": "LOSS_WEIGHT",
    "MODEL.SWIN": "QK_SCALE",
    "SOLVER": (
        "BACKBONE_MULTIPLIER BASE_LR_END BIAS_LR_FACTOR CHECKPOINT_PERIOD GAMMA LR_SCHEDULER_NAME MOMENTUM "
        "NESTEROV NUM_DECAYS OPTIMIZER POLY_LR_CONSTANT_ENDING POLY_LR_POWER REFERENCE_WORLD_SIZE "
        "RESCALE_INTERVAL STEPS WARMUP_FACTOR WARMUP_ITERS WARMUP_METHOD WEIGHT_DECAY_BIAS WEIGHT_DECAY_EMBED "
        "WEIGHT_DECAY_NORM"
    ),
    "SOLVER.CLIP_GRADIENTS": "CLIP_TYPE NORM_TYPE",
    "TEST": "DETECTIONS_PER_IMAGE EVAL_PERIOD EXPECTED_RESULTS KEYPOINT_OKS_SIGMAS",
    "TEST.PRECISE_BN": "ENABLED NUM_ITER",
}


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


USED = frozenset(leaves(DEFAULTS))  # what the code reads
for _table, _keys in _UNREAD.items():
    _place = DEFAULTS
    for _part in filter(None, _table.split(".")):
        _place = _place.setdefault(_part, {})
    _place |= dict.fromkeys(_keys.split())
