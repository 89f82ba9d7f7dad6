"""One file per method; the file name is its name on the command line. There is no registry to edit."""

from __future__ import annotations

import importlib
from pathlib import Path

from common.errors import UserError
from common.methods._base import Method


def available() -> list[str]:
    """Names of all methods: the files of this folder that do not start with an underscore."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> type[Method]:
    """The method class of that name. Raises UserError for an unknown one."""
    if name not in available():
        raise UserError(f"`--method` must be one of {', '.join(available())}, got {name}.")
    return importlib.import_module(f"common.methods.{name}").METHOD
