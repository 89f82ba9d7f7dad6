"""Every setting a Mask2Former config may hold, with the value it has when no file names it: `defaults.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.config import read_yaml

_TABLES = read_yaml(Path(__file__).with_suffix(".yaml"))
OPEN: tuple[str, ...] = tuple(_TABLES["open"])
RENAMED: dict[str, str] = _TABLES["renamed"]


def leaf_values(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name of every setting, and its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaf_values(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def leaves(tree: dict[str, Any]) -> Iterator[str]:
    """The dotted name of every setting."""
    return (name for name, _ in leaf_values(tree))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


DEFAULTS: dict[str, Any] = _with_tuples(_TABLES["honoured"])
USED = frozenset(leaves(DEFAULTS))  # what the code reads
for _table, _keys in _TABLES["accepted"].items():
    _place = DEFAULTS
    for _part in filter(None, _table.split(".")):
        _place = _place.setdefault(_part, {})
    _place |= dict.fromkeys(_keys)
