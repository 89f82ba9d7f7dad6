"""Starting a command's processes with torch's launcher. Nothing here loads torch before it is needed."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from dataclasses import dataclass

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
