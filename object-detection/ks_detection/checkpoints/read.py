"""Reads a checkpoint file without running anything that it holds."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.domain import ClassTable
from common.errors import UserError


class Checkpoint(NamedTuple):
    """What a file holds: tensors under published names and, where we wrote it, config and class names."""

    state: dict[str, Tensor]
    config: dict | None
    classes: ClassTable | None


def read_checkpoint(source: str | Path | dict, ema: bool = False) -> Checkpoint:
    """The weights in a file or in a dictionary already loaded.

    Published layouts are a bare state dict, {"model": ...} and {"model", "optimizer", "args": Namespace,
    ...}; `module.` prefixes of DDP are dropped.

    Args:
        ema: take `ema_model` instead of `model`.

    Raises:
        UserError: no such file, damaged, holds objects that would run code, or holds no weights.
    """
    data = source if isinstance(source, dict) else _load(Path(source))
    name = "ema_model" if ema else "model"
    if ema and name not in data:
        raise UserError("the checkpoint has no `ema_model`; load it without ema.")
    state = data.get(name, data)
    if isinstance(state, dict):  # arrays are taken for tensors
        state = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the checkpoint holds no weights: expected a state dict or a dictionary with key `model`.")
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    classes = data.get("classes")
    if isinstance(classes, dict):
        classes = ClassTable(tuple(classes["names"]), tuple(classes.get("ids", ())))
    config = data.get("config")
    return Checkpoint(
        tensors,
        config if isinstance(config, dict) else None,
        classes if isinstance(classes, ClassTable) else None,
    )


def _load(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files; the reason is passed on
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"checkpoint {path}: cannot be read safely ({reason[0][:160]}).") from None
    if not isinstance(data, dict):
        raise UserError(f"checkpoint {path}: holds a {type(data).__name__}, expected a dictionary of weights.")
    return data
