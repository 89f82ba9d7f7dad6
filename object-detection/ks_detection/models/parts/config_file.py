"""Reads the published `config/DINO/*.py` files as data: literals only, nothing is run."""

import ast
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_text
from common.schema import typed

MAX_FILES = 20  # that one file may be based on


def read_config(path: str | Path, options: list[str] = ()) -> dict:
    """The values of a config file and of the files it names in `_base_`, then of `options`.

    Args:
        path: a Python file of assignments whose right sides are literals.
        options: `key=value` strings as on the published command lines; `a.b=1` reaches into a dictionary.

    Raises:
        UserError: for anything that would have to be run (calls, imports, names), with its line number.
    """
    return read_options(options or (), _read(Path(path), (), []))


def read_options(options: list[str], values: dict | None = None) -> dict:
    """`values` (changed in place; default none) with those of `key=value` strings put in."""
    values = {} if values is None else values
    for option in options:
        _set_option(values, option)
    return values


def _read(path: Path, seen: tuple[Path, ...], files: list[Path]) -> dict:
    """The values of a file. `seen` are those that it is a base of, `files` all that were read."""
    files.append(path)
    if len(files) > MAX_FILES:
        raise UserError(f"config {files[0]}: `_base_` leads to more than {MAX_FILES} files.")
    if not path.is_file():
        raise UserError(f"config {path}: no such file; give the path of a .py config.")
    if path.resolve() in seen:
        raise UserError(f"config {path}: names itself in `_base_`.")
    try:
        text = read_text(path)
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: bytes that are no text
        raise UserError(f"config {path}: not readable as Python assignments ({error}).") from None
    own = dict(_assignment(path, statement, text.splitlines()) for statement in body if not _is_text(statement))
    bases = own.pop("_base_", [])
    values: dict = {}
    for base in typed([bases] if isinstance(bases, str) else bases, list[str], f"config {path}: `_base_`"):
        _merge(values, _read(path.parent / base, (*seen, path.resolve()), files))
    _merge(values, own)
    return values


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _assignment(path: Path, statement: ast.stmt, lines: Sequence[str]) -> tuple[str, object]:
    plain = isinstance(statement, ast.Assign) and len(statement.targets) == 1
    if plain and isinstance(statement.targets[0], ast.Name):
        try:
            return statement.targets[0].id, ast.literal_eval(statement.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            pass
    shown = lines[statement.lineno - 1].strip()[:200]
    raise UserError(
        f"config {path}, line {statement.lineno}: `{shown}` would have to be run; "
        "a config holds only `name = literal` lines."
    )


def _merge(values: dict, update: dict) -> None:
    for name, value in update.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict) and not value.get("_delete_"):
            _merge(values[name], value)
        else:
            values[name] = {k: v for k, v in value.items() if k != "_delete_"} if isinstance(value, dict) else value


def _set_option(values: dict, option: str) -> None:
    name, equals, text = option.partition("=")
    if not equals or not name:
        raise UserError(f"--options {option!r}: expected key=value, for example dn_box_noise_scale=1.0.")
    *folders, leaf = name.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
        if not isinstance(values, dict):
            raise UserError(f"--options {option!r}: `{folder}` is not a dictionary.")
    values[leaf] = _option_value(text)


def _option_value(text: str) -> object:
    """`true`/`FALSE`/`none` in any case, numbers, `[1,2]` or `1,2`; everything else stays text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) else value
    except (ValueError, SyntaxError):
        return [_option_value(part) for part in text.split(",")] if "," in text else text
