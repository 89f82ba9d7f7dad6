"""The layout of a detector whose files hold its tensors under their own names; another one is a module with these."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from common.errors import UserError


def is_own(state: dict[str, Tensor]) -> bool:
    """Whether keys alone tell that a file is of this detector."""
    return False


def to_ours(state: dict[str, Tensor], config: Any = None) -> dict[str, Tensor]:
    """The state of a file under the model's names."""
    return state


def to_published(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The model's state under the names of its files."""
    return state


def infer_config(state: dict[str, Tensor]) -> Any:
    """The config that keys and shapes tell. Raises UserError where they tell none."""
    raise UserError("checkpoint: it holds no config, and its keys do not tell what it is; give --config-file.")
