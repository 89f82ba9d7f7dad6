"""Sweep files: what they may hold, and one file with what it extends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.config import read_yaml
from common.errors import UserError
from common.schema import typed

Scalar = str | int | float | bool
Texts = Scalar | list[Scalar]
MAX_FILES = 64  # that a sweep extends, each counted as often as it is named


class Tune(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`tune` of a file; see `common.sweep.tuning`.

    range: pattern of the rows' names -> flag -> [low, high], [low, high, log] or a list of values.
    """

    flags: str = ""
    objective: str = "h_mean"
    range: dict[str, dict[str, list[Scalar]]] = {}

    def check(self, path: Path) -> None:
        """Raises UserError for a range that nothing lies in."""
        for pattern, flags in self.range.items():
            for name, values in flags.items():
                log, bounds = (
                    values[-1:] == ["log"],
                    [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)],
                )
                numbers = len(bounds) == 2 and len(values) == 2 + log
                low, high = bounds if numbers else (0, 1)
                odd = log and (not numbers or low <= 0)
                if len(values) < 2 or odd or not all(map(math.isfinite, bounds)) or not low < high:
                    raise UserError(
                        f"{path}: `tune`: `{pattern}`: `{name}` is [low, high], low below high, [low, high, log] with a low "
                        f"above 0, or several values, got {values!r} (a number with an exponent needs a point: 1.0e-4)."
                    )


class SweepFile(msgspec.Struct, forbid_unknown_fields=True):
    """A file, as it is written; every key may be missing."""

    extends: Texts = []
    output_dir: str = ""
    set: dict[str, Scalar | None] = {}
    prepare: str | list[str] = []
    command: str = ""
    flags: str | None = ""
    grid: dict[Scalar, list[Scalar | list[Scalar]] | dict[Scalar, Scalar | None]] = {}
    zip: dict[Scalar, list[Scalar | list[Scalar]] | dict[Scalar, Scalar | None]] = {}
    only: Texts = []
    columns: Texts = []
    tune: Tune = Tune()


KEYS = SweepFile.__struct_fields__


def merged(path: Path, chain: Sequence[Path] = (), left: list[int] | None = None) -> dict[str, Any]:
    """The file with what it extends; its own entries come first and win.

    Args:
        chain: the files that extend it; left: how many more may be read.

    Raises:
        UserError: no sweep, a file that extends itself, or too many of them.
    """
    left = [MAX_FILES] if left is None else left
    left[0] -= 1
    if path.resolve() in chain or left[0] < 0:
        raise UserError(f"{path}: `extends` leads back to itself, or to more than {MAX_FILES} files.")
    data = read_yaml(path)
    if unknown := [str(key) for key in data if key not in KEYS]:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a sweep has: {', '.join(KEYS)}.")
    typed(data, SweepFile, str(path), "`python -m common.sweep --help` shows the form").tune.check(path)
    for other in listed(data.pop("extends", [])):
        for key, value in merged(path.parent / other, (*chain, path.resolve()), left).items():
            data[key] = {**data[key], **{k: v for k, v in value.items() if k not in data[key]}} \
                if isinstance(value, dict) and key in data else data.get(key, value)  # fmt: skip
    return data


def listed(value: Any) -> list[str]:
    """A list of texts, or one text as such."""
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
