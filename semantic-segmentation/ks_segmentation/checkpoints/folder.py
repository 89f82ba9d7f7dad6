"""A folder with whole weights: the config and the class names that build its model again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from common import adapters
from common.errors import UserError
from common.record import write_json
from common.schema import read_json
from ks_segmentation.checkpoints.load import CLASSES_KEY
from ks_segmentation.config.load import load_config
from ks_segmentation.models.architecture import build_mask2former

MODEL_FILE = "segmentation.json"  # beside the weights


class ModelRecord(msgspec.Struct):
    """What it holds."""

    config: dict[str, Any]
    classes: list[str]


def save_config(folder: Path, model: nn.Module, classes: Sequence[str]) -> None:
    """Writes what is needed to build the model again beside its weights."""
    plain = model.config.plain()
    plain["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = len(classes)
    write_json(folder / MODEL_FILE, {"config": plain, "classes": list(classes)})


def load_folder(folder: Path, words: Sequence[Any] = ()) -> tuple[nn.Module, list[str]]:
    """(model in eval mode, class names) of a folder that `save_config` completed.

    Args:
        words: KEY, value, ... that override its config; the number of classes is the weights' own.

    Raises:
        UserError: no model there.
    """
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} holds no model of ours ({MODEL_FILE} is missing).")
    record: ModelRecord = read_json(folder / MODEL_FILE, ModelRecord, "name a model/ folder that is whole")
    classes = record.classes
    model = build_mask2former(load_config(None, [*flat(record.config), *words, CLASSES_KEY, len(classes)]))
    adapters.load_model(model, folder)
    return model.eval(), classes


def flat(table: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """KEY, value, KEY, value, ... of nested tables."""
    words: list[Any] = []
    for key, value in table.items():
        words += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key, value]
    return words
