"""Reads the tensors out of a checkpoint file, whatever it is wrapped in, without running anything it holds."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.errors import UserError, first_line
from common.files import user_path

WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
DEEPEST = 8  # wrappers within each other; a file can hold one that holds itself
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put in front of every key
UNFOLDED = 20  # times the size of a file, beyond a GiB
FOREIGN = re.compile(r"nsupported (?:global: )?GLOBAL (\S+)")  # how torch names what it refuses


class Weights(NamedTuple):
    """The tensors of a checkpoint by key, and what stood beside them (epoch, arguments, class names)."""

    state: dict[str, Tensor]
    beside: dict[str, Any]


def read_weights(source: str | Path | Mapping[str, Any]) -> Weights:
    """The tensors in a file (see `read_file`) or in a mapping that is loaded already.

    Wrappers such as {"model": ...} and {"state_dict": ...} are opened; `module.` and `_orig_mod.` dropped.

    Raises:
        UserError: no such file, damaged, holds objects that would run code, or holds no weights.
    """
    data = source if isinstance(source, Mapping) else read_file(source)
    where = "the checkpoint" if isinstance(source, Mapping) else f"checkpoint {source}"
    beside: dict[str, Any] = {}
    for _ in range(DEEPEST):
        inner = next((data[key] for key in WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            break
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
    if bad := [key for key, value in state.items() if value.dtype not in (*REAL, *WHOLE)]:
        raise UserError(f"{where} holds {bad[0][:80]!r} as {str(state[bad[0]].dtype)[6:]}; save it as float32.")
    if bad := [key for key, value in state.items() if not _usable(value)]:
        raise UserError(f"{where} is damaged: {bad[0][:80]!r} is no plain tensor of finite numbers.")
    return Weights(state, beside)


def rounded(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The names of parameters for which a checkpoint holds whole numbers."""
    return [n for n, p in own.items() if p.is_floating_point() and n in state and not state[n].is_floating_point()]


@contextmanager
def fitted(what: str) -> Iterator[None]:
    """Inside, tensors are looked at whose shapes may be any: makes one line of what goes wrong then."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{what}: its tensors are not those of such a model ({first_line(error)[:160]}).") from None


def _usable(value: Tensor) -> bool:
    plain = value.layout == torch.strided and not value.is_meta and not value.is_nested
    return plain and value.nbytes <= value.untyped_storage().nbytes() and bool(value.isfinite().all())


def _tensor(value: Any) -> Any:
    """Arrays as tensors, everything else as it is."""
    if not (isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8):
        return value
    return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key[len(next(p for p in PREFIXES if key.startswith(p))) :]
    return key.replace("._orig_mod.", ".")


# ---- files -------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> Mapping[str, Any]:
    """The dictionary in a .safetensors, .npz or .pkl (numpy arrays) file, or in one of `torch.save`.

    Raises:
        UserError: no such file, damaged, holds objects that would run code, or no dictionary.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: {'is a folder' if path.is_dir() else 'no such file'}.")
    with _one_line(f"checkpoint {path}"):
        _check_unfolded(path)
        data = READERS.get(path.suffix, _read_torch)(path)
    if not isinstance(data, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(data).__name__}, expected a dictionary of weights.")
    return data


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Makes one line of whatever goes wrong: damaged files alone raise a dozen kinds of errors."""
    try:
        yield
    except Exception as error:
        foreign = FOREIGN.search(str(error))
        odd = isinstance(error, KeyError | IndexError) or not str(error)  # of a reader that met bytes of another kind
        first = "it is no such file, or damaged" if odd else first_line(error)
        reason = f"it holds {foreign[1]}" if foreign else first
        raise UserError(f"{what}: cannot be read safely ({reason[:160]}); nothing in it was run.") from None


def _check_unfolded(path: Path) -> None:
    """Raises UserError for a packed file that unfolds to far more than it is: weights hardly shrink."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as packed:
        size = sum(part.file_size for part in packed.infolist())
    if size > max(UNFOLDED * path.stat().st_size, 2**30):
        raise UserError(f"it unfolds to {size / 2**30:.1f} GiB")


def _read_safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path)


def _read_npz(path: Path) -> Any:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a damaged file open
        return {name: arrays[name] for name in arrays.files}


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace, *_numpy_parts()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_parts() -> list[Any]:
    """What pickled numpy numbers ("best_acc") and arrays need, under their names in numpy 1 and 2."""
    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    named = [
        (part, f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for part, name in ((scalar, "scalar"), (rebuild, "_reconstruct"))
    ]
    kinds = (type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?"))
    return [*named, np.dtype, np.ndarray, *kinds]


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
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how old pickles write bytes
            return _latin1
        raise pickle.UnpicklingError(f"it holds {module}.{name}; numbers, text and numpy arrays are read only")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding}")
    return text.encode("latin1")


def _read_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()  # the strings of Python 2


READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".pkl": _read_arrays}
