"""state.pt and signals: how a run stops at a step boundary and goes on from there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError

KEYS = ("done", "model", "factors", "optimizer", "method", "own", "guard", "scaler")  # of state.pt, each a dict


class Interrupted(Exception):
    """The run was stopped by the user or a scheduler after a whole step; its state is saved.

    code: exit code of the command, 128 + the number of SIGINT or SIGTERM.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class Stop:
    """Whether the run shall end: `asked` turns true at the first Ctrl-C, SIGTERM (schedulers) or SIGHUP.

    code: exit code that goes with it: 130 for Ctrl-C, 143 for the others, which a scheduler may requeue on.
    """

    asked, code = False, 130

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal asks the run to end after the step in progress; a second Ctrl-C ends it at once. Other signals
        may come several times: a scheduler sends them to every process, and a launcher passes its own on."""

        def ask(signum: int, frame: Any) -> None:
            if self.asked and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.asked:
                self.asked, self.code = True, 130 if signum == signal.SIGINT else 143

        before = {}
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP; nohup has it ignored
                if number and (name == "SIGINT" or signal.getsignal(number) != signal.SIG_IGN):
                    before[number] = signal.signal(number, ask)
        except ValueError:  # not in the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [key for key in KEYS if not isinstance(state[key], dict)]:
            raise TypeError(missing)
        return dict(state)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except Exception as error:  # torch raises many kinds, OSError among them, for a damaged file
        raise UserError(f"{path} is damaged ({type(error).__name__}); add --overwrite to start anew.") from None
