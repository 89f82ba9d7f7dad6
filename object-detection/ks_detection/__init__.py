"""Object detection: DINO and Deformable DETR that learn, forget and retain.

`build_dino(config)`, `build_detector(config)` and `load_checkpoint(path_or_state, config=None)` give a model;
`model(images)` the raw outputs, `model.detect(images, score_threshold)` finished boxes.
"""

_HOME = {
    "DinoConfig": "ks_detection.dino.config",
    "DeformableConfig": "ks_detection.deformable_detr.config",
    "build_dino": "ks_detection.dino.model",
    "build_detector": "ks_detection.detectors",
    "load_checkpoint": "ks_detection.checkpoints.load",
    "export_official": "ks_detection.checkpoints.export",
    "DetectionDomain": "ks_detection.domain",
}
__all__ = sorted(_HOME)


def __getattr__(name):  # imported on first use, so that `import ks_detection` does not cost a second of torch
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
