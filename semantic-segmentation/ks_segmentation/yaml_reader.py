"""Reads detectron2's YAML files: `_BASE_` chains and computed lists, and nothing that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from ks_segmentation.arithmetic import evaluate

BASE_KEY = "_BASE_"
EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # after following every alias, so that a chain of aliases cannot explode
MAX_DEPTH = 40
MAX_CHAIN = 20  # files in one `_BASE_` chain


class _Loader(yaml.SafeLoader):
    """Plain YAML, plus the two Python tags that published configs use, read as data."""


def _computed(loader: _Loader, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise UserError(f"line {node.start_mark.line + 1}: `!!python/object/apply:eval` takes a list of one string.")
    return evaluate(arguments[0])


def _refuse(loader: _Loader, node: yaml.Node) -> Any:
    raise UserError(
        f"line {node.start_mark.line + 1}: the tag {node.tag.replace('tag:yaml.org,2002:', '!!')!r} is refused, "
        "since a config holds data and cannot run code. Write the value out instead."
    )


_Loader.add_constructor(EVAL_TAG, _computed)
_Loader.add_constructor(TUPLE_TAG, lambda loader, node: loader.construct_sequence(node))
_Loader.add_constructor(None, _refuse)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of the file and of the files it is based on; the file's own win.

    Raises:
        UserError: no such file, broken YAML, a tag that would run code, a `_BASE_` that leads back to itself.
    """
    return _read(Path(path).expanduser(), ())


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        by = f", which `_BASE_` in {chain[-1]} names" if chain else ""
        raise UserError(f"config file {path}{by} does not exist or is no file.")
    here = path.resolve()
    if here in chain or len(chain) >= MAX_CHAIN:
        raise UserError(f"`_BASE_` of {chain[-1]} leads back to {path}; a config cannot be based on itself.")
    settings = _parse(path)
    base: dict[str, Any] = {}
    names = settings.pop(BASE_KEY, [])
    for name in names if isinstance(names, list) else [names]:
        _merge(base, _read(_base_path(name, path), (*chain, here)), path)
    _merge(base, settings, path)
    return base


def _base_path(name: Any, path: Path) -> Path:
    if not isinstance(name, str) or "://" in name:
        raise UserError(f"`_BASE_` in {path} must name files on this machine, got {name!r}; download it first.")
    return path.parent / Path(name).expanduser()


def _parse(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"config file {path} is larger than {MAX_BYTES} bytes; that is no config.")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return {}
            _count(node, [0], 0, path)
            settings = loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not readable as YAML: {getattr(error, 'problem', None) or 'bad characters'}."
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise UserError(f"{path}: not readable as YAML text.") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise UserError(f"{path}: a config is a table of `KEY: value`, this file is not.")
    return settings


def _count(node: yaml.Node, seen: list[int], depth: int, path: Path) -> None:
    """Raises UserError when the tree below `node`, aliases followed, is too big to be a config."""
    seen[0] += 1
    if seen[0] > MAX_NODES or depth > MAX_DEPTH:
        raise UserError("the aliases (`*name`) or the nesting make this file too large for a config.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _count(key, seen, depth + 1, path)
            _count(value, seen, depth + 1, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _count(item, seen, depth + 1, path)


def _merge(into: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Writes `settings` over `into`, table by table."""
    for key, value in settings.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, path)
        elif isinstance(old, dict) != isinstance(value, dict) and old is not None:
            raise UserError(f"{path}: `{key}` is a table in one file of the `_BASE_` chain and a value in another.")
        else:
            into[key] = value
