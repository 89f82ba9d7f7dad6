"""A frozen copy of a model that shares every tensor that does not train."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Batch, Domain, Prediction


class Teacher:
    """The model as it is now, kept while the model itself goes on training.

    Frozen parameters are shared, so that with adapters a teacher costs the adapters, the head and the buffers;
    where everything trains it costs a second model. The copy is in eval mode and needs no gradient.

    Args:
        model: what is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        frozen = [p for p in model.parameters() if not p.requires_grad]
        self.module = copy.deepcopy(model, {id(p): p for p in frozen}).eval().requires_grad_(False)
        self.module.answers_stay = True  # type: ignore[assignment]  # a domain may remember them
        shared = {id(p) for p in frozen}
        self.kept = [n for n, t in self.module.state_dict(keep_vars=True).items() if id(t) not in shared]

    @torch.no_grad()
    def predict(self, domain: Domain, batches: Sequence[Batch]) -> list[Prediction]:
        """What the copy says about the same batches, without gradients; their items' losses are those to read."""
        return domain.predict_together(self.module, batches, ["items"] * len(batches))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that are not shared."""
        state = self.module.state_dict()
        return {name: state[name] for name in self.kept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; shared tensors are those of the model this was made from."""
        fill(self.module, state)


def restored(model: nn.Module, state: dict[str, Any] | None) -> Teacher | None:
    """A teacher with saved tensors, or None where none was saved."""
    if not state:
        return None
    teacher = Teacher(model)
    teacher.load_state_dict(state)
    return teacher


def share(model: nn.Module, other: nn.Module, own: Collection[str]) -> None:
    """Lets parameters of `model` that are equal to those of the same name in `other` be the same memory.

    For models that are only read. own: names of parameters that are written to, which stay apart.
    """
    theirs = dict(other.named_parameters())
    for name, p in model.named_parameters():
        found = theirs.get(name)
        alike = found is not None and (p.shape, p.dtype, p.device) == (found.shape, found.dtype, found.device)
        if found is not None and alike and name not in own and torch.equal(p, found):
            p.data = found.data


@torch.no_grad()
def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Writes tensors into the parameters and buffers of these names; a buffer may change its shape."""
    own = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if own[name].shape != value.shape:  # stacked adapters grow
            layer, _, leaf = name.rpartition(".")
            if not leaf.startswith("past_"):
                raise ValueError(f"{name} is {tuple(value.shape)}, the model has {tuple(own[name].shape)}")
            setattr(model.get_submodule(layer), leaf, value.to(own[name].device, copy=True))
        else:
            own[name].copy_(value)
