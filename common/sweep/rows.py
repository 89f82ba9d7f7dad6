"""A sweep file: a command, what varies, and the rows that follow from them."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common.config import flag
from common.errors import UserError
from common.sweep.files import KEYS, listed, merged

DEPTH = 4  # of `$name` within values of `$name`
MAX_ROWS = 10_000
MAX_TEXT = 100_000  # characters of a row's flags
MAX_NAME = 200  # characters of a row's name, which is that of a folder
HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One run.

    name:  of its folder, such as "gs_lora-seed0"; label: the same without the seed, which rows of a table share.
    words: the command behind `python`; folder: its --output-dir.
    """

    name: str
    label: str
    words: tuple[str, ...]
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return (self.folder / "done.json").is_file()

    def command(self) -> str:
        """What to type to carry out this row alone."""
        return shlex.join(["python", *self.words])


@dataclass(frozen=True)
class Sweep:
    """The rows of a file, what must be done before them, and what is shown of them.

    tune: see `common.sweep.tuning`.
    """

    out: Path
    rows: list[Row]
    prepare: list[Row]
    columns: Sequence[str] = ()
    tune: Mapping[str, Any] = field(default_factory=dict)


def read_sweep(path: str | Path, out: str, given: Mapping[str, str], only: Sequence[str], more: str = "") -> Sweep:
    """The sweep of a YAML file.

    Args:
        out: folder of the runs; the file's own `output_dir` when empty.
        given: values of `$name` in the file's texts, which win over those under `set`.
        only: patterns such as "gs_lora-*" of the names of the rows wanted; empty: the file's own `only`.
        more: further flags of every row.

    Raises:
        UserError: the file is no sweep, a `$name` has no value, two rows share a name, or a pattern fits none.
    """
    data = merged(Path(path))
    missing = [key for key in ("output_dir", "command") if not data.get(key, "").strip()]
    if missing:
        raise UserError(f"{path} is no sweep: it needs `{missing[0]}`; it may hold: {', '.join(KEYS)}.")
    if unknown := [name for name in given if name not in data.get("set", {})]:
        raise UserError(
            f"{path} has no ${unknown[0]}; under `set` it has: {', '.join(data.get('set', {})) or 'nothing'}."
        )
    values = {name: str(value) for name, value in data.get("set", {}).items() if value is not None}
    values |= {name: shlex.quote(value) for name, value in given.items()}
    out = out or _words(data["output_dir"], values, path)[0]
    values["out"] = shlex.quote(out)
    base = [*program(_words(data["command"], values, path)), *_words(data.get("flags", ""), values, path)]
    further, axes = _split(more, "--flags"), _axes(data, path)
    if (count := math.prod(map(len, axes))) > MAX_ROWS:
        raise UserError(f"{path} asks for {count:,} rows; at most {MAX_ROWS:,} can be carried out.")
    rows = []
    for picked in itertools.product(*axes):
        words = [*base, *(w for _, _, text in picked for w in _words(text, values, path)), *further]
        name = "-".join(part for _, part, _ in picked) or "run"
        label = "-".join(part for axis, part, _ in picked if axis != "seed") or "run"
        rows.append(Row(name, label, (*words, "--output-dir", f"{out}/{name}"), Path(out) / name))
    _check_names(rows, path)
    before = [_prepared(text, values, path) for text in listed(data.get("prepare", []))]
    patterns = only or listed(data.get("only", []))
    return Sweep(Path(out), _picked(rows, patterns), before, listed(data.get("columns", [])), data.get("tune", {}))


def program(words: Sequence[str]) -> list[str]:
    """The words behind `python` for "image-classification swap": the script of that folder, or a module's verb."""
    script = HERE / words[0] / f"{words[1]}.py" if len(words) > 1 else HERE
    if script.is_file():
        return [str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script), *words[2:]]
    return ["-m", *words]


def _axes(data: Mapping[str, Any], path: str | Path) -> list[list[tuple[str, str, str]]]:
    """Per axis its values as (axis, part of the row's name, flags)."""
    axes = [_axis(str(name), values, path) for name, values in data.get("grid", {}).items()]
    columns = [_axis(str(name), values, path) for name, values in data.get("zip", {}).items()]
    if len({len(column) for column in columns}) > 1:
        raise UserError(
            f"{path}: the lists under `zip` have {', '.join(str(len(c)) for c in columns)} values; make them equal."
        )
    zipped = [
        ("zip", "-".join(p for _, p, _ in row), " ".join(t for *_, t in row)) for row in zip(*columns, strict=True)
    ]
    return [*([zipped] if zipped else []), *axes]


def _axis(name: str, values: Any, path: str | Path) -> list[tuple[str, str, str]]:
    """A list of a flag's values, or a mapping of names to flags."""
    if isinstance(values, dict) and values:
        return [(name, _safe(str(key)), str(text or "")) for key, text in values.items()]
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: `{name}` must list values, or hold `name: flags` lines, got {values!r}.")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"{path}: `{name}` is no flag; a list of values needs the name of one, such as `lr`.")
    return [(name, _part(name, value), _flag_text(name, value)) for value in values]


def _flag_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag(name)} {text if '$' in text else shlex.quote(text)}"


def _part(name: str, value: Any) -> str:
    """What a value adds to the name of its row: "fltf" says enough, 0.01 needs the flag's name."""
    telling = isinstance(value, str) and not re.fullmatch(r"[-+.\deE]*", value)
    return _safe(Path(value).stem if telling and "/" in value else str(value)) if telling else _safe(f"{name}{value}")


def _safe(name: str) -> str:
    """A name as it may stand in a path."""
    return re.sub(r"[^\w.+=]+", "-", name).strip("-.") or "x"


def _check_names(rows: Sequence[Row], path: str | Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if len(row.name) > MAX_NAME:
            raise UserError(
                f"{path}: the row {row.name[:60]!r}... has a name of more than {MAX_NAME} letters; name its values."
            )
        if row.name.lower() in seen:
            raise UserError(f"{path}: two rows are called {row.name!r}; give their values names (`name: flags`).")
        seen.add(row.name.lower())


def _picked(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in rows):
            raise UserError(f"no row is called {pattern!r}; there are: {', '.join(row.name for row in rows[:40])}.")
    return [row for row in rows if not patterns or any(fnmatch(row.name, pattern) for pattern in patterns)]


def _prepared(text: str, values: Mapping[str, str], path: str | Path) -> Row:
    words = _words(text, values, path)
    if "--output-dir" not in words[:-1]:
        raise UserError(f"{path}: a command under `prepare` needs --output-dir, where its done.json is looked for.")
    folder = Path(words[words.index("--output-dir") + 1])
    return Row(folder.name, folder.name, tuple(program(words)), folder)


def _words(text: Any, values: Mapping[str, str], path: str | Path) -> list[str]:
    """A text of the file as words, each `$name` replaced, those in the values too."""
    text = str(text or "")
    try:
        for _ in range(DEPTH):
            if text.count("$") * max(map(len, values.values()), default=0) > MAX_TEXT:
                raise UserError(f"{path}: the values of `set` make a text of more than {MAX_TEXT:,} characters.")
            text = string.Template(text).substitute(values)
        if "$" in text:
            raise UserError(f"{path}: {text[:80]!r} is left of values of `set` that lead back to themselves.")
        return shlex.split(text)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: what is ${error.args[0]}? Add --set {error.args[0]}=VALUE.") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot read {text!r}: {error}.") from None


def _split(text: str, what: str) -> list[str]:
    """The words of a text. Raises UserError for a quote that is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{what} {text!r} cannot be read: {error}.") from None
