"""state.pt and Ctrl-C: how a run stops at a step boundary and goes on from there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError


class Interrupted(Exception):
    """The run was stopped by the user after a whole step; its state is saved."""


class Stop:
    """Whether the user asked the run to end: `asked` turns true at the first Ctrl-C."""

    asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, Ctrl-C asks the run to end after the step in progress; a second one ends it at once."""

        def ask(signum: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not in the main thread: the caller handles Ctrl-C
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def changing(model: nn.Module) -> dict[str, Tensor]:
    """What may change in a run: trained parameters and all buffers."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    return {k: v for k, v in model.state_dict().items() if k in trained or k in buffers}


def on_device(device: torch.device, value: Any) -> Any:
    """A nest of dicts and lists with its tensors on `device`."""
    if isinstance(value, dict):
        return {key: on_device(device, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(device, inner) for inner in value)
    return value.to(device) if isinstance(value, Tensor) else value


def read_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None where none was saved yet. Raises UserError when it is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except Exception as error:  # torch raises many kinds, OSError among them, for a damaged file
        raise UserError(f"{path} is damaged ({type(error).__name__}); add --overwrite to start anew.") from None
