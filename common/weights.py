"""Reads the tensors out of a checkpoint file, whatever it is wrapped in, without running anything it holds."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put in front of every key


class Weights(NamedTuple):
    """The tensors of a checkpoint by key, and what stood beside them (epoch, arguments, class names)."""

    state: dict[str, Tensor]
    beside: dict[str, Any]


def read_weights(source: str | Path | Mapping[str, Any]) -> Weights:
    """The tensors in a file (.pth, .bin, .safetensors, .npz) or in a mapping that is loaded already.

    Wrappers such as {"model": ...} and {"state_dict": ...} are opened; `module.` and `_orig_mod.` dropped.

    Raises:
        UserError: no such file, damaged, holds objects that would run code, or holds no weights.
    """
    data = source if isinstance(source, Mapping) else _load(Path(source))
    where = "the checkpoint" if isinstance(source, Mapping) else f"checkpoint {source}"
    beside: dict[str, Any] = {}
    while inner := next((data[key] for key in WRAPPERS if isinstance(data.get(key), Mapping)), None):
        beside |= {key: value for key, value in data.items() if value is not inner}
        data = inner
    data = {str(key): _tensor(value) for key, value in data.items()}
    state = {_bare(key): value for key, value in data.items() if isinstance(value, Tensor)}
    beside |= {key: value for key, value in data.items() if not isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(str, list(data)[:4])) or "nothing"
        raise UserError(
            f"{where} holds no weights (found: {keys}); expected a state dict, or one under `model` or `state_dict`."
        )
    return Weights(state, beside)


def _tensor(value: Any) -> Any:
    """Arrays as tensors, everything else as it is."""
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return torch.from_numpy(np.ascontiguousarray(value)) if numeric else value


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key[len(next(p for p in PREFIXES if key.startswith(p))) :]
    return key.replace("._orig_mod.", ".")


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"checkpoint {path}: {'is a folder' if path.is_dir() else 'no such file'}.")
    try:
        data = _read(path)
    except Exception as error:  # torch alone raises a dozen kinds for damaged files; the reason is passed on
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(f"checkpoint {path}: damaged, or not safe to read ({reason[:160]}).") from None
    if not isinstance(data, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(data).__name__}, expected a dictionary of weights.")
    return data


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    with torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number ("best_acc") needs, under its names in numpy 1 and 2."""
    from numpy.dtypes import Float32DType, Float64DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, Float32DType, Float64DType, Int64DType]


class _ArraysOnly(pickle.Unpickler):
    """Admits numbers, text, containers and numpy arrays; everything else could run code."""

    PARTS = {("numpy", "ndarray"), ("numpy", "dtype")} | {
        (f"{package}.{module}", name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.PARTS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # how old pickles write bytes
            return _latin1
        raise pickle.UnpicklingError(f"holds {module}.{name}; numbers, text and numpy arrays are read only")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"holds text in {encoding}")
    return text.encode("latin1")


def read_pickle(path: str | Path, encoding: str = "latin1") -> Any:
    """The content of a pickle of numbers, text and numpy arrays; nothing in it is run.

    encoding: how to read the strings of Python 2; "bytes" leaves them as bytes.

    Raises:
        UserError: no such file, damaged, or holds anything else.
    """
    try:
        with Path(path).open("rb") as file:
            return _ArraysOnly(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:160]}.") from None
