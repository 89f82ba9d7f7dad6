"""What is imported on first use only, so that --help need not wait for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class Module:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


def lazy(**homes: str) -> tuple[Callable[[str], Any], list[str]]:
    """(`__getattr__`, `__all__`) of a package whose public names live in these modules."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"there is no public name {name!r}; there are: {', '.join(sorted(homes))}.")
        return getattr(importlib.import_module(homes[name]), name)

    return find, sorted(homes)
