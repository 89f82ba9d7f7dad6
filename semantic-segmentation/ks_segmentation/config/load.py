"""A detectron2 config: defaults, then the YAML file, then `KEY value` words, every step checked."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from ks_segmentation.config import limits
from ks_segmentation.config.defaults import DEFAULTS, OPEN, RENAMED, leaves
from ks_segmentation.config.yaml_reader import read_yaml

TYPES = {tuple: "list of values", str: "text", int: "whole number", bool: "True or False", float: "number"}


class Config(dict):
    """A table of settings whose entries are also attributes: `config.MODEL.SWIN.EMBED_DIM`. Read only.

    given: dotted names of what file and overrides state.
    """

    given: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a config is read only; give `{name}` as an override when it is loaded.")

    def plain(self) -> dict[str, Any]:
        """The same settings as ordinary dicts and lists, for JSON or YAML."""
        return {
            key: value.plain() if isinstance(value, Config) else list(value) if isinstance(value, tuple) else value
            for key, value in self.items()
        }


def load_config(config_file: str | Path | None = None, overrides: Sequence[Any] = ()) -> Config:
    """The settings of `config_file` with `overrides`, ("MODEL.WEIGHTS", "x.pth", "SOLVER.BASE_LR", 1e-4, ...).

    Keys that are known to detectron2 and read by nothing here are accepted; `words.tell_unused` lists them.

    Raises:
        UserError: a key that does not exist (with the nearest that does), a value of another type or outside its
            bounds, an odd number of override words, an unreadable or unsafe file.
    """
    tree = copy.deepcopy(DEFAULTS)
    changed: list[str] = []
    if config_file is not None:
        if Path(config_file).suffix not in (".yaml", ".yml"):
            raise UserError(f"`--config-file` must be a .yaml file, got {config_file}.")
        for key, value in _flat(read_yaml(config_file), tree):
            _put(tree, key, value, changed, str(config_file))
    for key, value in in_pairs(overrides):
        _put(tree, str(key), value, changed, "the command line")
    config = _node(tree)
    limits.check(config)
    vars(config)["given"] = tuple(dict.fromkeys(changed))
    return config


def in_pairs(words: Sequence[Any]) -> list[tuple[Any, Any]]:
    """(KEY, value) of words in turn. Raises UserError when the last key has no value."""
    if len(words) % 2:
        raise UserError(
            f"overrides come in pairs `KEY value`; {words[-1]!r} has no partner (write `KEY value`, not KEY=value)."
        )
    return list(zip(words[::2], words[1::2], strict=True))


def _node(tree: dict[str, Any]) -> Config:
    return Config({key: _node(value) if isinstance(value, dict) else value for key, value in tree.items()})


def _flat(settings: dict[str, Any], tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a table without known defaults is one leaf."""
    for key, value in settings.items():
        name = prefix + str(key)
        below = tree.get(key) if isinstance(tree, dict) else None
        if isinstance(value, dict) and isinstance(below, dict) and name not in OPEN:
            yield from _flat(value, below, name + ".")
        else:
            yield name, value


def _put(tree: dict[str, Any], key: str, value: Any, changed: list[str], where: str) -> None:
    key = RENAMED.get(key, key)
    if any(key == section or key.startswith(section + ".") for section in OPEN):
        changed.append(key)
        return
    parts = key.split(".")
    table: Any = tree
    for part in parts[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if not isinstance(table, dict) or parts[-1] not in table:
        raise UserError(f"Non-existent key: {key} (in {where}).{_nearest(key)}")
    old = table[parts[-1]]
    if isinstance(old, dict):
        raise UserError(
            f"{key} (in {where}) is a table of settings, not a value; name one, e.g. {key}.{next(iter(old))}."
        )
    table[parts[-1]] = _typed(_decoded(value), old, key, where)
    changed.append(key)


def _nearest(key: str) -> str:
    names = list(leaves(DEFAULTS))
    close = difflib.get_close_matches(key, names, 1, 0.6)
    if not close:  # the right name in the wrong place
        close = [n for n in names if n.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f" Did you mean {close[0]}?" if close else " See ks_segmentation/config/defaults.yaml for all keys."


def _decoded(value: Any) -> Any:
    """Strings that spell a Python value, such as "(640, 640)" or "1e-4", as that value."""
    if not isinstance(value, str) or len(value) > 10_000:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _typed(value: Any, old: Any, key: str, where: str) -> Any:
    """`value` as the type of `old`: lists become tuples and whole numbers floats, nothing else is bent."""
    if isinstance(value, list):
        value = tuple(value)
    if old is None or value is None or type(value) is type(old):
        return value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, str) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # OUTPUT_DIR 7
    raise UserError(f"{key} (in {where}) must be a {TYPES[type(old)]} like {old!r}, got {value!r}.")
