"""Object detection: DINO and Deformable DETR that learn, forget and retain.

`swap(model, data=..., learn=[...], forget=[...])` trains and `load_run(path)` reads a finished run.
`build_dino(config)`, `build_detector(config)` and `load_checkpoint(path_or_state, config=None)` give a model;
`model(images)` the raw outputs, `model.detect(images, score_threshold)` finished boxes.
"""

from common.lazy import lazy

__getattr__, __all__ = lazy(
    swap="ks_detection.api",
    load_run="ks_detection.api",
    load_runs="ks_detection.api",
    DinoConfig="ks_detection.models.dino.config",
    DeformableConfig="ks_detection.models.deformable_detr.config",
    build_dino="ks_detection.models.detectors",
    build_detector="ks_detection.models.detectors",
    load_checkpoint="ks_detection.checkpoints.load",
    export_official="ks_detection.checkpoints.export",
    DetectionDomain="ks_detection.domain",
)
