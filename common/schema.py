"""Files of JSON and YAML that users and run folders hold, checked against typed structs: one line says what is wrong where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.errors import UserError, first_line
from common.files import read_data

T = TypeVar("T")


def read_json(path: Path, kind: type[T] | Any = Any, advice: str = "remove the folder or add --overwrite") -> Any:
    """A JSON file's content as `kind`: a msgspec struct or any type hint; keys that a struct lacks are skipped.

    Args:
        advice: what to do about a damaged file.

    Raises:
        UserError: missing, no JSON, or of another form; names the place.
    """
    data = read_data(path)
    if kind is not Any:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            raise UserError(f"{path} is damaged or of another form: {_plain(error)}; {advice}.") from None
        except (msgspec.DecodeError, RecursionError):
            pass  # it may hold NaN, which Python writes and JSON has not
    try:
        return typed(json.loads(data), kind, str(path), advice)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); {advice}.") from None


def checked_json(path: Path, kind: Any, advice: str = "remove the folder or add --overwrite") -> Any:
    """A JSON file's content as it is, if it could be read as `kind`. Raises UserError like `read_json`."""
    data = read_json(path)
    typed(data, kind, str(path), advice)
    return data


NAMES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
         "object": "a table", "null": "nothing"}  # fmt: skip
KINDS = re.compile(rf"`((?:{'|'.join(NAMES)})(?: \| (?:{'|'.join(NAMES)}))*)`")


def _plain(error: Exception) -> str:
    """msgspec's message with its types in words: "Expected text, got a whole number - at `$.images[0].id`"."""
    return KINDS.sub(lambda found: " or ".join(NAMES[kind] for kind in found[1].split(" | ")), str(error))


def typed(data: Any, kind: type[T] | Any, where: str, advice: str = "mend it") -> Any:
    """Plain data as `kind`. Raises UserError that names the place of a wrong value."""
    try:
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{where} is damaged or of another form: {_plain(error)}; {advice}.") from None
