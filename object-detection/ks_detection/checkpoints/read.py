"""The weights of a detector's checkpoint and what we wrote beside them; `common.weights` opens the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torch import Tensor

from common.domain import ClassTable
from common.errors import UserError
from common.schema import typed
from common.weights import read_file, read_weights


class Checkpoint(NamedTuple):
    """What a file holds: tensors under published names and, where we wrote it, config and class names."""

    state: dict[str, Tensor]
    config: dict | None
    classes: ClassTable | None


class Names(msgspec.Struct):
    """`classes` of a file written here."""

    names: list[str]
    ids: list[int] = []

    def __post_init__(self) -> None:
        if len(self.ids) > len(self.names):
            raise ValueError("more ids than names")


def read_checkpoint(source: str | Path | Mapping[str, Any], ema: bool = False) -> Checkpoint:
    """The weights in a file or in a dictionary already loaded.

    Published layouts are a bare state dict, {"model": ...} and {"model", "optimizer", "args": Namespace,
    ...}; `module.` prefixes of DDP are dropped.

    Args:
        ema: take `ema_model` instead of `model`.

    Raises:
        UserError: no such file, damaged, holds objects that would run code, or holds no weights.
    """
    data = source if isinstance(source, Mapping) else read_file(source)
    if ema and not isinstance(data.get("ema_model"), Mapping):
        raise UserError("the checkpoint has no `ema_model`; load it without ema.")
    state = read_weights(data["ema_model"] if ema else data).state
    config, classes = data.get("config"), data.get("classes")
    if isinstance(classes, dict):
        told: Names = typed(classes, Names, "checkpoint: `classes`", "give --class-names and take it out")
        classes = ClassTable(tuple(told.names), tuple(told.ids))
    return Checkpoint(
        state,
        config if isinstance(config, dict) else None,
        classes if isinstance(classes, ClassTable) else None,
    )
