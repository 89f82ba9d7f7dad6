"""Ranks: the only file that talks to torch.distributed. In one process everything here is a no-op."""

from __future__ import annotations

import os
import signal
import sys
import warnings
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import Interrupted, UserError
from common.knobs import Checked, knob

# The environment of the launcher on several nodes. Without it torch keeps one key store for all restarts, and workers
# that start again read the addresses of those that were killed, and wait for them.
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass
class LaunchConfig(Checked):
    """Processes."""

    num_gpus: int = knob(
        1, "processes to start with torch's launcher, one per GPU (or use torchrun yourself)", least=1, most=64
    )


def relaunched(config: LaunchConfig) -> bool:
    """Runs this process's command again in `num_gpus` processes and waits for them; False where there is nothing to
    start (one process, or this is already one of them).

    Raises:
        UserError: a process failed.
        Interrupted: Ctrl-C, or a scheduler's SIGTERM; the processes have saved and ended.
    """
    if config.num_gpus == 1 or "WORLD_SIZE" in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing import SignalException  # costs a second
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    # With `python -m PACKAGE` the package's folder must not become a place to import from.
    module = sys.modules["__main__"].__spec__
    words = ["--module", module.name.removesuffix(".__main__"), *sys.argv[1:]] if module else sys.argv
    try:
        torchrun(["--standalone", f"--nproc-per-node={config.num_gpus}", *words])
    except ChildFailedError:
        raise UserError("one of the processes stopped with an error; its message is above.") from None
    except SignalException as stop:
        code = 130 if stop.sigval == signal.SIGINT else 143
        raise Interrupted("stopped; the same command goes on from what was saved.", code) from None
    return True


def launcher(nodes: int, processes: int, head: str, job: str) -> list[str]:
    """The words between `python` and a command that start it on every node, one process per GPU; the workers of a node
    that failed start again and go on from the last saved state.

    Args:
        head: name of the node that the others meet at; job: the same on all nodes, and no other job's.

    `NEW_STORE` must be in its environment.
    """
    place = f"{head}:{29500 + zlib.crc32(job.encode()) % 1000}"
    words = ["-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={max(1, processes)}"]
    # One killed worker costs several restarts: those that lose it fail too, and every node counts its own.
    return [*words, "--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-id={job}", "--max-restarts=8"]


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
