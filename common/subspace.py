"""Directions of inputs at adapted layers, and updates that do not react to them.

An adapter adds B A x to its layer's output. Where A is orthogonal to x, that is zero, whatever B becomes. So an adapter
whose A is orthogonal to the inputs of forgotten classes leaves the layer's response to them as it is.

The space is spanned by the top eigenvectors of the uncentred covariance of the inputs, as in gradient projection memory
(Saha et al., ICLR 2021, arXiv:2103.09762) and InfLoRA (Liang and Li, CVPR 2024, arXiv:2404.00228).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common import distributed, lora
from common.domain import Batch, Domain
from common.record import write_bytes

FILE = "guard.safetensors"


class Space(TypedDict):
    """Names of classes, and per adapted layer [in, k] orthonormal directions of their inputs."""

    classes: list[str]
    layers: dict[str, Tensor]


@torch.no_grad()
def directions(model: nn.Module, domain: Domain, batches: Iterable[Batch], energy: float) -> dict[str, Tensor]:
    """Per adapted layer [in, k] orthonormal directions that hold a share of its inputs' energy, the fewest there are.

    Args:
        model: in eval mode.
        batches: this rank's share; all ranks get the same result.
        energy: share of the sum of squares, above 0, up to 1.
    """
    layers = lora.adapters(model)
    sums = {
        name: layer.lora_A.new_zeros(layer.lora_A.shape[1], layer.lora_A.shape[1]) for name, layer in layers.items()
    }
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(_adder(sums[name]), with_kwargs=True)
            stack.callback(handle.remove)
        for batch in batches:
            domain.predict(model, batch)
    return {name: top(distributed.total(total), energy) for name, total in sums.items()}


def _adder(total: Tensor) -> Any:
    """A hook that adds x x' of every input to `total`; attention has up to three inputs."""

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
        wide = total.shape[0]
        inputs = {id(x): x for x in (*args[:3], *named) if isinstance(x, Tensor) and x.shape[-1] == wide}
        for x in inputs.values():
            flat = x.detach().reshape(-1, wide).to(total.dtype)
            total.add_(flat.T @ flat)

    return add


def top(covariance: Tensor, energy: float) -> Tensor:
    """[n, k] eigenvectors of a symmetric [n, n] matrix, largest first, the fewest that hold a share of its trace."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.flip(0).clamp(min=0)
    held = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    count = int((held < energy - 1e-12).sum()) + 1 if values.sum() > 0 else 0
    return vectors.flip(1)[:, :count].to(covariance.dtype)


@torch.no_grad()
def project(model: nn.Module, spaces: Sequence[Space]) -> None:
    """Makes every trainable A orthogonal to the directions of its layer, in place."""
    for name, layer in lora.adapters(model).items():
        found = [space["layers"][name].to(layer.lora_A) for space in spaces]
        if found:
            basis = found[0] if len(found) == 1 else torch.linalg.qr(torch.cat(found, 1)).Q
            layer.lora_A.sub_((layer.lora_A @ basis) @ basis.T)


def sizes(spaces: Sequence[Space]) -> dict[str, int]:
    """How many directions there are, and how many bytes they take."""
    tensors = [u for space in spaces for u in space["layers"].values()]
    return {"directions": sum(u.shape[1] for u in tensors), "bytes": sum(u.numel() * u.element_size() for u in tensors)}


def save(spaces: Sequence[Space], folder: Path) -> None:
    """Writes guard.safetensors: `<number>.<layer>` [in, k], and in its metadata the classes of every number."""
    tensors = {
        f"{i}.{name}": u.cpu().contiguous() for i, space in enumerate(spaces) for name, u in space["layers"].items()
    }
    classes = json.dumps([space["classes"] for space in spaces])
    write_bytes(folder / FILE, to_bytes(tensors, metadata={"classes": classes}))
