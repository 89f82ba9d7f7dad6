"""Reads detectron2's YAML files: `_BASE_` chains and computed lists, and nothing that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common import config
from common.errors import UserError
from common.files import user_path
from ks_segmentation.config.arithmetic import evaluate

MAX_FILES = 20  # that one file may be based on


class _Loader(config.Loader):
    """Plain YAML, plus the two Python tags that published configs use, read as data."""

    def get_single_data(self) -> Any:
        return super().get_single_data() or {}  # an empty file changes nothing

    def computed(self, node: yaml.Node) -> Any:
        arguments = self.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise UserError("`!!python/object/apply:eval` takes a list of one string.")
        return evaluate(arguments[0])


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.computed)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_sequence)


def read_yaml(path: str | Path, files: list[Path] | None = None) -> dict[str, Any]:
    """The settings of the file and of the files it is based on; the file's own win.

    Args:
        files: those read so far.

    Raises:
        UserError: no such file, broken YAML, a tag that would run code, a `_BASE_` that leads back to itself.
    """
    files, path = [] if files is None else files, user_path(path)
    files.append(path)
    if len(files) > MAX_FILES:
        raise UserError(f"`_BASE_` of {files[0]} leads back to a file before it, or to more than {MAX_FILES} files.")
    settings, merged = config.read_yaml(path, _Loader), {}
    bases = settings.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base:
            raise UserError(f"`_BASE_` in {path} must name files on this machine, got {base!r}; download it first.")
        _merge(merged, read_yaml(path.parent / user_path(base), files), path)
    _merge(merged, settings, path)
    return merged


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
