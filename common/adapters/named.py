"""Several adapters on one base model, one of them on at a time; the base is never copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from common import adapters
from common.adapters import PREFIX
from common.errors import UserError
from common.lora import adapters as on


class Named:
    """Saved adapters by name on a base model.

        swaps = Named(model, classes)
        swaps.add("birds", "results/birds")
        with swaps.using("birds") as model:
            ...

    An adapter's files stay on the disk and are read when it is put on, so that its weights take memory only then. What
    they replace (head parameters, whose rows may have become more) comes back as the same tensors afterwards.

    model: the base; used from one thread at a time.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str] = ()) -> None:
        self.model, self._base_classes = model.eval(), tuple(classes)
        self._folders: dict[str, tuple[Path, tuple[str, ...]]] = {}
        self._now = ""

    @property
    def names(self) -> list[str]:
        """In the order in which they were added."""
        return list(self._folders)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the rows of the adapter that is on, or of the base."""
        return self._folders[self._now][1] if self._now else self._base_classes

    def add(self, name: str, run: str | Path) -> None:
        """Makes the adapter of a run folder, or an adapter folder, known; tries whether it fits.

        Raises:
            UserError: the name is taken, no adapter is there, or it was made for another base.
        """
        if name in self._folders:
            raise UserError(f"there is an adapter {name!r} already; names are: {', '.join(self.names)}.")
        folder = Path(run) / "adapter" if (Path(run) / "adapter").is_dir() else Path(run)
        info, _ = adapters.read(folder)
        self._folders[name] = folder, tuple(info["classes"])
        try:
            with self.using(name):
                pass
        except UserError:
            del self._folders[name]
            raise

    @contextmanager
    def using(self, name: str) -> Iterator[nn.Module]:
        """Inside, the model has this adapter; "" is the base itself.

        Raises:
            UserError: unknown, or another one is on.
        """
        if name and name not in self._folders:
            raise UserError(f"there is no adapter {name!r}; there are: {', '.join(self.names) or 'none'}.")
        if self._now or on(self.model):
            raise UserError(f"adapter {self._now or 'of another call'!r} is on; leave its block first.")
        if not name:
            yield self.model
            return
        heads: dict[str, nn.Parameter] = {}
        try:
            folder, _ = self._folders[name]
            info, tensors = adapters.read(folder)
            for head in info["rows"]:
                heads[head] = self._replace(head, tensors[PREFIX + head])
            adapters.load(self.model, folder)
            self._now = name
            yield self.model
        finally:
            adapters.remove(self.model)
            for head, parameter in heads.items():
                _set(self.model, head, parameter)
            self._now = ""

    def _replace(self, head: str, saved: torch.Tensor) -> nn.Parameter:
        """Gives a head parameter room for the adapter's rows; the parameter that was there."""
        old = dict(self.model.named_parameters(remove_duplicate=False)).get(head)
        if old is None or old.shape[1:] != saved.shape[1:]:
            raise UserError(f"the model has no {head} of rows of {tuple(saved.shape[1:])} values.")
        _set(self.model, head, nn.Parameter(saved.to(old), requires_grad=False))
        return old


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    setattr(module, leaf, parameter)
    if leaf == "weight":
        for count in ("out_features", "num_embeddings", "num_classes"):
            if hasattr(module, count):
                setattr(module, count, len(parameter))
