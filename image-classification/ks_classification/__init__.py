"""Image classification: vision transformers that learn, forget and retain.

`load_checkpoint(path_or_state)` gives a model in eval mode, `export_published(model, path)` writes it back
under the published keys.
"""

_HOME = {
    "load_checkpoint": "ks_classification.checkpoints",
    "export_published": "ks_classification.checkpoints",
    "FaceTransformer": "ks_classification.face",
}
__all__ = sorted(_HOME)


def __getattr__(name):  # imported on first use: `import ks_classification` then costs nothing
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
