"""Image classification: vision transformers that learn, forget and retain.

`swap(model, data=..., learn=[...], forget=[...])` trains and `load_run(path)` reads a finished run;
`load_checkpoint(path_or_state)` gives a model in eval mode, `export_published(model, path)` writes it back under the
published keys.
"""

from common.lazy import lazy

__getattr__, __all__ = lazy(
    swap="ks_classification.api",
    load_run="ks_classification.api",
    load_runs="ks_classification.api",
    load_checkpoint="ks_classification.checkpoints.load",
    export_published="ks_classification.checkpoints.export",
    OwnModel="ks_classification.models.own",
    FaceTransformer="ks_classification.models.face",
)
