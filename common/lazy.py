"""Public names of a package, imported on first use, so that importing the package itself costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy(**homes: str) -> tuple[Callable[[str], Any], list[str]]:
    """(`__getattr__`, `__all__`) of a package whose public names live in these modules."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"there is no public name {name!r}; there are: {', '.join(sorted(homes))}.")
        return getattr(importlib.import_module(homes[name]), name)

    return find, sorted(homes)
