"""Every setting a Mask2Former config may hold, with the value it has when no file names it."""

from __future__ import annotations

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
    "WIDTH_PER_GROUP": 64,
    "RES4_DILATION": 1,
    "RES5_DILATION": 1,
    "RES5_MULTI_GRID": (1, 1, 1),
    "DEFORM_ON_PER_STAGE": (False, False, False, False),
    "DEFORM_MODULATED": False,
    "DEFORM_NUM_GROUPS": 1,
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
    "QK_SCALE": None,
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
    "LOSS_WEIGHT": 1.0,
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
    "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
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
    "ENC_LAYERS": 0,
    "DEC_LAYERS": 10,
    "PRE_NORM": False,
    "ENFORCE_INPUT_PROJ": False,
    "SIZE_DIVISIBILITY": 32,
    "TRAIN_NUM_POINTS": 12544,
    "OVERSAMPLE_RATIO": 3.0,
    "IMPORTANCE_SAMPLE_RATIO": 0.75,
    "TEST": {
        "SEMANTIC_ON": True,
        "INSTANCE_ON": False,
        "PANOPTIC_ON": False,
        "OBJECT_MASK_THRESHOLD": 0.8,
        "OVERLAP_THRESHOLD": 0.8,
        "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    },
}
SOLVER: dict[str, Any] = {
    "OPTIMIZER": "ADAMW",
    "BASE_LR": 1e-4,
    "BACKBONE_MULTIPLIER": 0.1,
    "WEIGHT_DECAY": 0.05,
    "WEIGHT_DECAY_NORM": 0.0,
    "WEIGHT_DECAY_EMBED": 0.0,
    "WEIGHT_DECAY_BIAS": None,
    "BIAS_LR_FACTOR": 1.0,
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "IMS_PER_BATCH": 16,
    "REFERENCE_WORLD_SIZE": 0,
    "MAX_ITER": 160_000,
    "STEPS": (30_000,),
    "GAMMA": 0.1,
    "NUM_DECAYS": 3,
    "LR_SCHEDULER_NAME": "WarmupPolyLR",
    "POLY_LR_POWER": 0.9,
    "POLY_LR_CONSTANT_ENDING": 0.0,
    "BASE_LR_END": 0.0,
    "RESCALE_INTERVAL": False,
    "WARMUP_ITERS": 0,
    "WARMUP_FACTOR": 1.0,
    "WARMUP_METHOD": "linear",
    "CHECKPOINT_PERIOD": 5000,
    "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.01, "NORM_TYPE": 2.0},
    "AMP": {"ENABLED": False},
}
INPUT: dict[str, Any] = {
    "MIN_SIZE_TRAIN": tuple(64 * n for n in range(5, 21)),
    "MIN_SIZE_TRAIN_SAMPLING": "choice",
    "MAX_SIZE_TRAIN": 2560,
    "MIN_SIZE_TEST": 640,
    "MAX_SIZE_TEST": 2560,
    "CROP": {"ENABLED": True, "TYPE": "absolute", "SIZE": (640, 640), "SINGLE_CATEGORY_MAX_AREA": 1.0},
    "COLOR_AUG_SSD": True,
    "RANDOM_FLIP": "horizontal",
    "SIZE_DIVISIBILITY": 640,
    "FORMAT": "RGB",
    "MASK_FORMAT": "polygon",
    "DATASET_MAPPER_NAME": "mask_former_semantic",
    "IMAGE_SIZE": 1024,
    "MIN_SCALE": 0.1,
    "MAX_SCALE": 2.0,
}
DATASETS: dict[str, Any] = {
    "TRAIN": (),
    "TEST": (),
    "PROPOSAL_FILES_TRAIN": (),
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    "LEARN_DATASET_NAME": "",
    "SAMPLE_WEIGHTS": None,
}
TEST: dict[str, Any] = {
    "EVAL_PERIOD": 5000,
    "DETECTIONS_PER_IMAGE": 100,
    "EXPECTED_RESULTS": (),
    "KEYPOINT_OKS_SIGMAS": (),
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (320, 480, 640, 800, 960, 1120),
        "MAX_SIZE": 4480,
        "FLIP": True,
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    "SLIDING_WINDOW": 0,  # ours: side of the square windows in pixels, 0 for the whole picture at once
}
DEFAULTS: dict[str, Any] = {
    "VERSION": 2,
    "MODEL": {
        "META_ARCHITECTURE": "MaskFormer",
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "PIXEL_MEAN": (123.675, 116.28, 103.53),
        "PIXEL_STD": (58.395, 57.12, 57.375),
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 0},
        "RESNETS": RESNETS,
        "SWIN": SWIN,
        "SEM_SEG_HEAD": SEM_SEG_HEAD,
        "MASK_FORMER": MASK_FORMER,
    },
    "INPUT": INPUT,
    "DATASETS": DATASETS,
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "ASPECT_RATIO_GROUPING": True,
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0,
        "REPEAT_SQRT": True,
        "RANDOM_SUBSET_RATIO": 1.0,
        "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "SOLVER": SOLVER,
    "TEST": TEST,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
    "VIS_PERIOD": 0,
    "LEARN_ALPHA": 0.01,
    "LEARN_BETA": 0.9,
    "FORGET_BND": 115.0,
    "FORGET_ALPHA": 0.01,
    "FORGET_BETA": 0.2,
}


def _names(prefix: str, *keys: str) -> set[str]:
    return {f"{prefix}.{key}" for key in keys}


# What the code reads. The rest of DEFAULTS is accepted, so that published files load, and listed in the log.
USED = (
    {"VERSION", "OUTPUT_DIR", "SEED", "LEARN_ALPHA", "LEARN_BETA", "FORGET_BND", "FORGET_ALPHA", "FORGET_BETA"}
    | _names("MODEL", "META_ARCHITECTURE", "WEIGHTS", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE.NAME")
    | _names("MODEL.RESNETS", "DEPTH", "STEM_TYPE", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "OUT_FEATURES", "NORM")
    | _names("MODEL.RESNETS", "STRIDE_IN_1X1", "NUM_GROUPS", "RES4_DILATION", "RES5_DILATION")
    | (_names("MODEL.SWIN", *SWIN) - {"MODEL.SWIN.QK_SCALE"})
    | (_names("MODEL.SEM_SEG_HEAD", *SEM_SEG_HEAD) - {"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"})
    | (_names("MODEL.MASK_FORMER", *MASK_FORMER) - _names("MODEL.MASK_FORMER", "ENC_LAYERS", "TRANSFORMER_IN_FEATURE"))
    | _names("MODEL.MASK_FORMER.TEST", "SEMANTIC_ON", "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE")
    | _names("INPUT", "MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST", "CROP.ENABLED", "CROP.SIZE")
    | _names("INPUT", "CROP.SINGLE_CATEGORY_MAX_AREA", "COLOR_AUG_SSD", "RANDOM_FLIP", "FORMAT")
    | _names("SOLVER", "BASE_LR", "BACKBONE_MULTIPLIER", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_EMBED")
    | _names(
        "SOLVER", "IMS_PER_BATCH", "MAX_ITER", "LR_SCHEDULER_NAME", "POLY_LR_POWER", "WARMUP_ITERS", "WARMUP_FACTOR"
    )
    | _names("SOLVER", "OPTIMIZER", "CLIP_GRADIENTS.ENABLED", "CLIP_GRADIENTS.CLIP_TYPE", "CLIP_GRADIENTS.CLIP_VALUE")
    | _names("SOLVER", "CLIP_GRADIENTS.NORM_TYPE", "AMP.ENABLED")
    | _names("DATASETS", "TRAIN", "TEST", "LEARN_DATASET_NAME")
    | _names("TEST", "AUG.ENABLED", "AUG.MIN_SIZES", "AUG.MAX_SIZE", "AUG.FLIP", "SLIDING_WINDOW")
)
