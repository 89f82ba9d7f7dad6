"""state.pt: how a run that stopped at a step boundary goes on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import check_regular
from common.schema import typed
from common.teacher import fill

if TYPE_CHECKING:
    from common.trainer import Trainer

AGAIN = "add --overwrite to start anew"
KEYS = ("done", "model", "factors", "optimizer", "method", "own", "guard", "scaler")  # of state.pt, each a dict


Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class Done(msgspec.Struct):
    """How far a run has come: `done` of state.pt. phase: the next one, or that in progress; step: within it."""

    phase: Annotated[int, msgspec.Meta(ge=1)]
    step: Count
    metrics: Count
    steps: Count
    seconds: Amount = 0.0
    peak_memory: Amount = 0.0
    cpu_seconds: Amount = 0.0


class Saved:
    """What a resumed run takes up again.

    saved: names of attributes: tensors, numbers, nests of them, or objects with a `state_dict`; those of bases count too.
    """

    saved: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """The values of these attributes."""
        names = [name for kind in type(self).__mro__ for name in vars(kind).get("saved", ())]
        values = {name: getattr(self, name) for name in names}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name, value in state.items():
            own = getattr(self, name)
            if hasattr(own, "load_state_dict"):
                own.load_state_dict(value)
            elif value is not None:
                setattr(self, name, value)


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
    check_regular(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [key for key in KEYS if not isinstance(state[key], dict)]:
            raise TypeError(missing)
        typed(state["done"], Done, f"{path}, `done`", AGAIN)
        return dict(state)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except Exception as error:  # torch raises many kinds, OSError among them, for a damaged file
        raise UserError(f"{path} is damaged ({type(error).__name__}); {AGAIN}.") from None


@contextmanager
def taking_up(path: Path) -> Iterator[None]:
    """Inside, a saved state is put in the place of the present one. Raises UserError where it is of another form."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} is damaged or of another run ({reason}); {AGAIN}.") from None


def collected(trainer: Trainer) -> dict[str, Any]:
    """state.pt: everything that the rest of a run depends on, at a step boundary."""
    method = trainer.method
    return {
        "done": dict(trainer.done),
        "model": changing(trainer.model),
        "factors": trainer.factors,
        "optimizer": trainer.optimizer.state_dict(),
        "method": method.state_dict(),
        "own": method.own.state_dict() if method.own is not None else {},
        "guard": trainer.guard.state_dict(),
        "settling": trainer.settling.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "average": trainer.average.state_dict(),
    }


def take_up(trainer: Trainer, state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Puts a trainer where the state of `path` was collected; that of the optimizer, which is made later."""
    method, device = trainer.method, trainer.device
    with taking_up(path):
        if state["done"]["phase"] > len(trainer.plan.phases) + 1:
            raise ValueError(f"phase {state['done']['phase']} of {len(trainer.plan.phases)}")
        fill(trainer.model, state["model"])
        if method.own is not None:
            method.own.load_state_dict(state["own"])
        method.load_state_dict(on_device(device, state["method"]))
        trainer.guard.load_state_dict(on_device(device, state["guard"]))
        trainer.settling.load_state_dict(state.get("settling", {}))
        trainer.scaler.load_state_dict(state["scaler"])
        if "average" in state:
            trainer.average.load_state_dict(state["average"])
        trainer.factors = on_device(device, state["factors"])
        trainer.done = dict(state["done"])
        return dict(state["optimizer"])
