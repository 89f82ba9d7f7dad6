"""What stands beside whole weights, so that their model can be built again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.record import write_json

MODEL_FILE = "segmentation.json"  # beside the weights


class ModelRecord(msgspec.Struct):
    """What it holds.

    modelname, network, files: type, config and processor of a model of transformers; "" for one of a detectron2 config.
    """

    config: dict[str, Any]
    classes: list[str]
    modelname: str = ""
    network: dict[str, Any] = {}
    files: dict[str, str] = {}


def save_config(folder: Path, model: Any, classes: Sequence[str]) -> None:
    """Writes what is needed to build the model again beside its weights."""
    plain = model.config.plain()
    plain["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = len(classes)
    write_json(folder / MODEL_FILE, {"config": plain, "classes": list(classes), **model.record()})
