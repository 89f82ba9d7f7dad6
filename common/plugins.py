"""One file or folder of a package per method or model; its name is theirs. There is no registry to edit."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any


def available(package: ModuleType, others: Collection[str] = ()) -> list[str]:
    """Names of what a package holds: its files and folders but those that start with an underscore.

    Args:
        others: names of files and folders that are something else.
    """
    found = (entry.name for entry in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_") and name not in others)


def load(package: ModuleType, name: str, attribute: str) -> Any:
    """An attribute of a file, or of `model.py` of a folder."""
    module = import_module(f"{package.__name__}.{name}")
    return getattr(import_module(f"{module.__name__}.model") if hasattr(module, "__path__") else module, attribute)
