"""Reads weight files without running anything that stands in them."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

_ARRAY_PARTS = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.multiarray", "scalar"),
                         (f"{package}.numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}  # fmt: skip


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What old pickles call to write bytes as text; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("a codec")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Admits numbers, text, containers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_pickle(path: Path) -> Any:
    """The content of a `.pkl` of numpy arrays. Raises UserError when it holds anything that could run."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} asks for `{error}` while it is read; a .pkl of weights holds numpy arrays only. "
            "It was not run. Ask its author for a .pth or .safetensors file."
        ) from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(f"{path} is not a readable .pkl ({type(error).__name__}).") from None


def read_torch(path: Path) -> Any:
    """The content of a `.pth` file of tensors and plain values. Raises UserError for anything else."""
    safe = [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?"))]
    for package in ("_core", "core"):
        module = getattr(np, package, None)
        if module is not None and hasattr(module, "multiarray"):
            safe += [module.multiarray.scalar, module.multiarray._reconstruct]
            break
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = str(error).splitlines()[0][:120]
        raise UserError(f"{path} holds more than tensors and plain values ({why}); it was not run.") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a readable PyTorch file ({type(error).__name__}).") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}).") from None


def _read_folder(path: Path) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder, in one file or in several named by an index."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        state: dict[str, Tensor] = {}
        for name in names:
            if Path(name).name != name:
                raise UserError(f"{index} names {name!r}, which does not lie beside it.")
            state |= read_safetensors(path / name)
        return state
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch)):
        if (path / name).is_file():
            return read(path / name)
    raise UserError(f"folder {path} holds neither model.safetensors nor pytorch_model.bin.")


READERS = {".pkl": read_pickle, ".safetensors": read_safetensors}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a detectron2 `.pth` or `.pkl`, a `.safetensors` file or a Hugging Face folder.

    Raises:
        UserError: no such file, a file that would run code when read, or one that holds no weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return tensors(_read_folder(path), str(path))
    if not path.is_file():
        raise UserError(f"there is no weight file {path}.")
    return tensors(READERS.get(path.suffix, read_torch)(path), str(path))


def tensors(content: Any, where: str = "the given state") -> dict[str, Tensor]:
    """The tensors of a state dict, of {"model": state dict} or of a dict of arrays; what is no array is left out."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    state = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if isinstance(value, Tensor):
            state[str(name).removeprefix("module.")] = value
    if not state:
        raise UserError(f"{where} holds no weights: expected name -> array, or such a table under `model`.")
    return state
