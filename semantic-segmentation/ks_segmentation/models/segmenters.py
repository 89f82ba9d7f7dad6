"""One file or folder of `models/` per segmenter; its name is the `model_type` of transformers. There is no registry to edit."""

from __future__ import annotations

from typing import Any

from common import plugins
from common.errors import UserError
from ks_segmentation import models
from ks_segmentation.models.parts.segmenter import Segmenter

NOT_MODELS = ("parts", "segmenters")  # of what lies beside them


def available() -> list[str]:
    """Names of all segmenters: the files and folders of `models/`."""
    return plugins.available(models, NOT_MODELS)


def segmenter_type(name: Any) -> type[Segmenter]:
    """The segmenter of a model type. Raises UserError for an unknown one."""
    if name not in available():
        raise UserError(f"a {name} is no segmenter known here; there are: {', '.join(available())}.")
    kind: type[Segmenter] = plugins.load(models, name, "SEGMENTER")
    return kind
