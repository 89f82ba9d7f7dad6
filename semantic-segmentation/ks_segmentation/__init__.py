"""Semantic segmentation: Mask2Former that learns, forgets and retains."""

from importlib import import_module
from typing import Any

_WHERE = {
    "build_mask2former": "architecture",
    "load_checkpoint": "checkpoint",
    "export_detectron2": "export",
    "load_config": "config",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """The public function `name`, imported when first asked for, so that the package itself imports at once."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
