"""Reads weight files and Hugging Face folders; `common.weights` opens the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common import weights
from common.errors import UserError
from common.files import user_path

WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder


def read_weights(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Name -> tensor of a detectron2 `.pth` or `.pkl`, a `.safetensors` file, a Hugging Face folder or a mapping.

    Raises:
        UserError: no such file, a file that would run code when read, or one that holds no weights.
    """
    if not isinstance(source, Mapping) and user_path(source).is_dir():
        source = _read_folder(user_path(source))
    return weights.read_weights(source).state


def _read_folder(path: Path) -> Mapping[str, Any]:
    """The weights of a Hugging Face folder, in one file or in several named by an index."""
    index = path / WEIGHT_FILES[0]
    if index.is_file():
        state: dict[str, Any] = {}
        for name in _listed(index):
            if Path(name).name != name:
                raise UserError(f"{index} names {name!r}, which does not lie beside it.")
            state |= weights.read_file(path / name)
        return state
    for name in WEIGHT_FILES[1:]:
        if (path / name).is_file():
            return weights.read_file(path / name)
    raise UserError(f"folder {path} holds neither model.safetensors nor pytorch_model.bin.")


def _listed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is no index of weights: expected a table `weight_map` of name -> file.") from None
