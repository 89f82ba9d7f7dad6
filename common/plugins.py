"""One file or folder of a package per method or model; its name is theirs. There is no registry to edit."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from common.errors import UserError


@dataclass(frozen=True)
class Plugins:
    """What a package holds.

    attribute: what each file, or `model.py` of a folder, sets to its class.
    refusal: the error for an unknown name, with places for {name} and what is {known}.
    others: names of files and folders that are something else, besides those that start with an underscore.
    """

    package: ModuleType
    attribute: str
    refusal: str
    others: Collection[str] = ()

    def available(self) -> list[str]:
        """The names."""
        found = (entry.name for entry in pkgutil.iter_modules(self.package.__path__))
        return sorted(name for name in found if not name.startswith("_") and name not in self.others)

    def load(self, name: Any) -> Any:
        """The class of a name. Raises UserError for an unknown one."""
        if name not in self.available():
            raise UserError(self.refusal.format(name=name, known=", ".join(self.available())))
        module = import_module(f"{self.package.__name__}.{name}")
        whole = import_module(f"{module.__name__}.model") if hasattr(module, "__path__") else module
        return getattr(whole, self.attribute)
