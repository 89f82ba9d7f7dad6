"""One file per method; the file name is its name on the command line. There is no registry to edit."""

from __future__ import annotations

import sys

from common.methods._base import Method
from common.plugins import Plugins

_METHODS = Plugins(sys.modules[__name__], "METHOD", "`--method` must be one of {known}, got {name}.")
available = _METHODS.available


def load(name: str) -> type[Method]:
    """The method class of that name. Raises UserError for an unknown one."""
    kind: type[Method] = _METHODS.load(name)
    return kind
