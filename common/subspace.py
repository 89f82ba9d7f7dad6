"""Directions of inputs at adapted layers, and updates that do not react to them.

An adapter adds B A x to its layer's output. Where A is orthogonal to x, that is zero, whatever B becomes. So an adapter
whose A is orthogonal to the inputs of forgotten classes leaves the layer's response to them as it is.

The space is spanned by the top eigenvectors of the uncentred covariance of the inputs, as in gradient projection memory
(Saha et al., ICLR 2021, arXiv:2103.09762) and InfLoRA (Liang and Li, CVPR 2024, arXiv:2404.00228). The covariance of
kept items is subtracted first: what both share, a background or what all faces have in common, stays free for later
phases. Otherwise a few tasks fill the space, and nothing more can be forgotten or learned. So the response to forgotten
items may still change along shared directions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common import distributed, lora
from common.domain import Batch, Domain
from common.errors import UserError
from common.record import write_bytes

FILE = "guard.safetensors"


class Space(TypedDict):
    """Names of classes, and per adapted layer [in, k] orthonormal directions of their inputs."""

    classes: list[str]
    layers: dict[str, Tensor]


@torch.no_grad()
def directions(
    model: nn.Module, domain: Domain, batches: Iterable[Batch], energy: float, others: Iterable[Batch] = ()
) -> dict[str, Tensor]:
    """Per adapted layer [in, k] orthonormal directions that hold a share of its inputs' energy, the fewest there are.

    Args:
        model: in eval mode.
        batches: this rank's share; all ranks get the same result.
        energy: share of the sum of squares, above 0, up to 1.
        others: pictures without the items in question; what their inputs have as much of per token is left out.
    """
    found, common = (covariances(model, domain, part) for part in (batches, others))
    return {name: top(total - common[name], energy) for name, total in found.items()}


def covariances(model: nn.Module, domain: Domain, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Per adapted layer the mean [in, in] of x x' over its inputs, over all ranks; 0 where there is no batch."""
    layers = lora.adapters(model)
    sums = {
        name: layer.lora_A.new_zeros(layer.lora_A.shape[1], layer.lora_A.shape[1] + 1) for name, layer in layers.items()
    }
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(_adder(sums[name]), with_kwargs=True)
            stack.callback(handle.remove)
        for batch in batches:
            domain.predict(model, batch)
    totals = {name: distributed.total(total) for name, total in sums.items()}
    return {name: total[:, :-1] / total[0, -1].clamp(min=1) for name, total in totals.items()}


def _adder(total: Tensor) -> Any:
    """A hook that adds x x' of every input to `total`, and how many there are to its last column; attention has up to
    three inputs."""

    wide = total.shape[0]

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
        inputs = {id(x): x for x in (*args[:3], *named) if isinstance(x, Tensor) and x.shape[-1] == wide}
        for x in inputs.values():
            flat = x.detach().reshape(-1, wide).to(total.dtype)
            total[:, :wide].add_(flat.T @ flat)
            total[:, wide].add_(len(flat))

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


def read(folder: str | Path, layers: Collection[str]) -> list[Space]:
    """The directions beside an adapter; none where no guard took any.

    Args:
        layers: names of the layers that are adapted now.

    Raises:
        UserError: the file is damaged, or has no directions for one of `layers`.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            classes = msgspec.json.decode((file.metadata() or {}).get("classes", ""), type=list[list[str]])
            spaces = [Space(classes=names, layers={}) for names in classes]
            for key in file.keys():  # noqa: SIM118  # no mapping
                number, _, name = key.partition(".")
                spaces[int(number)]["layers"][name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, IndexError, msgspec.DecodeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); the command of its run writes it again."
        ) from None
    strange = [name for space in spaces for name in layers if name not in space["layers"]]
    if strange:
        raise UserError(
            f"{path} has no directions for layer {strange[0]}, which is adapted now; adapt the layers of that run "
            "(--lora-position), or use --guard none."
        )
    return spaces


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
