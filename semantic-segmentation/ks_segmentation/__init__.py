"""Semantic segmentation: Mask2Former and segmenters of transformers that learn, forget and retain.

`swap(model, data=..., learn=[...], forget=[...])` trains and `load_run(path)` reads a finished run;
`load_checkpoint(path_or_state, config_file)` gives a model in eval mode, `export_detectron2(model, path)` writes it back.
"""

from common.lazy import lazy

__getattr__, __all__ = lazy(
    swap="ks_segmentation.api",
    load_run="ks_segmentation.api",
    load_runs="ks_segmentation.api",
    build_mask2former="ks_segmentation.models.mask2former.model",
    load_hub="ks_segmentation.checkpoints.folder",
    load_checkpoint="ks_segmentation.checkpoints.load",
    export_detectron2="ks_segmentation.checkpoints.export",
    load_config="ks_segmentation.config.load",
)
