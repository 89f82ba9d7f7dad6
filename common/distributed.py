"""Ranks: what is said between processes. In one process everything here is a no-op."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def init(device: torch.device) -> None:
    """Joins the group that torchrun announces in the environment, if any (NCCL on GPUs, gloo on CPUs)."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def close() -> None:
    """Leaves the group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def active() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 in a single process."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine: which GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", 0))


def wrap(module: nn.Module, device: torch.device, unused: bool = False) -> nn.Module:
    """`module` under DistributedDataParallel, or itself in one process.

    unused: some trained parameters may take no part in a loss (a whole model may have such; adapters do not).
    """
    if not active():
        return module
    ids = [device.index] if device.type == "cuda" else None
    # a gradient of a kernel with one channel or one place says its strides in another way, in the same order in memory
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch advises another argument, and this one as long as buffers differ
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, find_unused_parameters=unused
        )


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients of a wrapped module stay on their rank, for accumulating them."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over ranks, with the gradient of this rank's own value.

    DDP averages gradients, so that a function of this mean gets exactly the gradient that one process with
    all the data would compute.
    """
    if not active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / world() - value.detach())


def total(value: Tensor) -> Tensor:
    """The sum of `value` over ranks, without gradient."""
    result = value.detach().clone()
    if active():
        dist.all_reduce(result)
    return result


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on some rank, so that all ranks stop together."""
    if not active():
        return flag
    return total(torch.tensor(float(flag), device=device)).item() > 0


def gather(value: Any) -> list[Any]:
    """The `value` of every rank, on every rank, in rank order (any picklable object)."""
    if not active():
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
