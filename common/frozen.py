"""The first part of a model that nothing trains: its outputs are computed once and kept on disk.

A domain divides its model into stages that are run one after the other. The leading stages without anything that
trains are constant; what comes out of the last of them is kept by picture, view and weights, for all phases, scores,
proofs and runs. The files are of `common.fast`; without it nothing is kept.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import layers, lora
from common.knobs import Checked, knob

FOLDER = Path("results/features")
FAST_VIEWS, FAST_BLOCKS = 2, "last1/4"
Part = Sequence["nn.Module | Tensor"]  # what one stage reads
RANDOM = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)  # in training mode


@dataclass
class FrozenConfig(Checked):
    """What does not train is computed once."""

    fast: bool = knob(
        False,
        f"adapters in the last quarter of the blocks only (--lora-blocks {FAST_BLOCKS}), on {FAST_VIEWS} views of each "
        "training image that repeat; all below is computed once and kept in bf16",
    )
    views: int = knob(
        0, "augmented views of each training image, which repeat; 0 draws a new one each time", least=0, most=1000
    )
    feature_cache: str = knob(
        "auto",
        f"folder for the outputs of what does not train, where views repeat; auto is {FOLDER}, none keeps nothing",
    )
    feature_cache_gb: float = knob(4.0, "size limit of that folder, GiB", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fast and not self.views:
            self.views = FAST_VIEWS


NOTHING = FrozenConfig(feature_cache="none")


def constant(model: nn.Module, stages: Sequence[Part]) -> int:
    """How many leading stages hold neither an adapter nor, where the model has none, a parameter that trains."""
    adapted = {id(m) for m in lora.adapters(model).values()}

    def trains(piece: nn.Module | Tensor) -> bool:
        if isinstance(piece, Tensor):
            return piece.requires_grad and not adapted
        if adapted:
            return any(id(module) in adapted for module in piece.modules())
        return any(p.requires_grad for p in piece.parameters())

    return next((i for i, stage in enumerate(stages) if any(map(trains, stage))), len(stages))


class Frozen:
    """The outputs of constant stages, by key.

    Args:
        words: what the outputs depend on besides weights, pictures and views.
    """

    def __init__(self, config: FrozenConfig, *words: object) -> None:
        self.config, self.words = config, words
        self.on = layers.fast is not None and config.feature_cache != "none"
        if self.on and layers.fast is not None and config.feature_cache != "auto":
            layers.fast.check_folder(Path(config.feature_cache))  # one that cannot be written shows before a run begins
        self.read = self.computed = 0  # outputs
        self._stores: dict[str, Any] = {}
        self._names: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()

    def describe(self) -> dict[str, Any]:
        """What changes the numbers of a run, for its identity."""
        told = {"views": self.config.views, "fast": self.config.fast}
        return {name: value for name, value in told.items() if value}

    def counts(self) -> dict[str, float]:
        """See `Domain.saved`."""
        counts = {"outputs_read": float(self.read), "outputs_computed": float(self.computed)}
        return counts if any(counts.values()) else {}

    def usable(self, model: nn.Module, stages: Sequence[Part]) -> bool:
        """Whether the stages give the same outputs at every call: nothing in them trains or draws random numbers."""
        pieces = [piece for stage in stages for piece in stage]
        if torch.is_grad_enabled() and any(p.requires_grad for p in _tensors(pieces)):
            return False
        modules = (module for piece in pieces if isinstance(piece, nn.Module) for module in piece.modules())
        return self.config.fast or not any(draws(module) for module in modules)

    def outputs(
        self, model: nn.Module, stages: Sequence[Part], keys: Sequence[bytes],
        compute: Callable[[list[int]], Sequence[Sequence[Tensor]]],
    ) -> list[Sequence[Tensor]]:  # fmt: skip
        """What the stages give for each key.

        Args:
            keys: stand for a picture and its view.
            compute: makes the outputs of the keys at these positions; called without gradients, the stages in eval mode.
        """
        store = self._store(self._name(model, stages))
        found: list[Any] = [store.get(key) for key in keys]
        missing = [i for i, outputs in enumerate(found) if outputs is None]
        if missing:
            modules = [piece for stage in stages for piece in stage if isinstance(piece, nn.Module)]
            with torch.no_grad(), evaluating(modules):
                made = [[self._kept(t) for t in outputs] for outputs in compute(missing)]
            store.put({keys[i]: outputs for i, outputs in zip(missing, made, strict=True)})
            for i, outputs in zip(missing, made, strict=True):
                found[i] = outputs
        self.computed, self.read = self.computed + len(missing), self.read + len(keys) - len(missing)
        return found

    def _kept(self, value: Tensor) -> Tensor:
        return value.to(torch.bfloat16) if self.config.fast else value

    def _store(self, name: str) -> Any:
        if name not in self._stores:
            assert layers.fast is not None  # else it is not on
            folder = FOLDER if self.config.feature_cache == "auto" else Path(self.config.feature_cache)
            self._stores[name] = layers.fast.Store(folder, name, int(self.config.feature_cache_gb * 2**30))
        return self._stores[name]

    def _name(self, model: nn.Module, stages: Sequence[Part]) -> str:
        """Stands for the weights of the stages, the number formats and the words; computed anew when weights change."""
        tensors = [t for stage in stages for t in _tensors(stage)]
        kind = next((t.device.type for t in tensors), "cpu")
        format = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        stamp = (format, *((id(t), None if t.is_inference() else t._version) for t in tensors))
        known = self._names.get(model)
        if known is None or known[0] != stamp:
            digest = hashlib.blake2b(repr((self.words, len(stages), str(format), self.config.fast)).encode())
            for t in tensors:
                digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
                digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            known = self._names[model] = (stamp, digest.hexdigest()[:24])
        return known[1]


def _tensors(pieces: Part) -> Iterator[Tensor]:
    for piece in pieces:
        yield from (piece,) if isinstance(piece, Tensor) else (*piece.parameters(), *piece.buffers())


def draws(module: nn.Module) -> bool:
    """Whether a module gives another output at each call, or changes with it."""
    if not module.training:
        return False
    return bool(getattr(module, "p", 1) and isinstance(module, RANDOM)) or bool(getattr(module, "drop_prob", 0))


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the modules are in eval mode."""
    training = [m for module in modules for m in module.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
