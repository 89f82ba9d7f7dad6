"""The three real domains with tiny models on their embedded digits; each with the groups of a swap."""

from ks_classification.data import images
from ks_classification.data.pixels import ImageConfig
from ks_classification.domain import ClassificationDomain
from ks_classification.models import build
from ks_detection import domain as detectors
from ks_detection.data.scenes import digit_scenes
from ks_segmentation.data import digits
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from tiny_dino import tiny_dino
from tiny_mask2former import RESNET, model

from common.domain import ClassTable


def classification():
    """A ViT of two blocks on the digits; it knows the first nine."""
    groups = {"learn": ("9",), "forget": ("0", "1"), "retain": tuple("2345678")}
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    spec = build.ModelSpec("vit_tiny_patch16_224", args, list("012345678"), size=16)
    config = ImageConfig(flip=False, shots=8)
    return ClassificationDomain(spec, images.digits(), groups, config, base=build.build(spec)), groups


def detection():
    """DINO on scenes of four digits; it knows three."""
    groups = {"learn": ("3",), "forget": ("0",), "retain": ("1", "2")}
    base = tiny_dino(num_classes=3, enc_layers=1, dec_layers=2)
    base.class_table = ClassTable(("0", "1", "2"), (0, 1, 2))
    sizes = {"sizes": "56-72:8", "longest": 96, "before_crop": "64,72", "crop": "48,64", "test_size": 64}
    scenes = digit_scenes("0123", counts={"train": 16, "test": 12})
    config = detectors.ImageConfig(flip=False, **sizes)
    return detectors.DetectionDomain(base, scenes, groups, config), groups


def segmentation():
    """Mask2Former on scenes of number plates; it knows the ground and nine digits."""
    groups = {"learn": ("9",), "forget": ("1", "8"), "retain": ("ground", *"3457")}
    sizes = ["INPUT.CROP.SIZE", [64, 64], "INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MIN_SIZE_TEST", 64]
    layers = ["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.DEC_LAYERS", 3]
    base = model(RESNET, *sizes, *layers, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 10)
    plates = digits.digit_scenes(24, 16)
    config = MaskConfig(cache_dir="", eval_batch=16)
    return SegmentationDomain(base, plates.classes[:10], [plates], groups, config), groups


DOMAINS = {"classification": classification, "detection": detection, "segmentation": segmentation}
