"""A setting of a config dataclass: its default, its help, and what may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def knob(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """A dataclass field that `config.add_flags` turns into a flag with this help and these choices."""
    return field(default=default, metadata={"help": help} | ({"choices": list(choices)} if choices else {}))
