"""Several functions at a time, each in a process of its own that prints into a file; needs no guarded main script."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, forkserver, get_all_start_methods, get_context, set_forkserver_preload
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from common import cli
from common.errors import Interrupted, UserError
from common.stop import Stop
from common.sweep.engines import POLL, first_error


class Job(NamedTuple):
    """One function.

    call:  can be pickled; gives an exit code, or raises what a command may raise.
    log:   the file that it prints into.
    needs: names of the jobs that must be done before.
    """

    name: str
    call: Callable[[], int | None]
    log: Path
    needs: Sequence[str] = ()


def begin(imports: Sequence[str]) -> None:
    """Starts the server of processes, which imports these modules in the background; nothing where none can be forked."""
    if "forkserver" in get_all_start_methods():
        set_forkserver_preload(list(imports))
        with _no_main():
            forkserver.ensure_running()


def carry_out(
    jobs: Sequence[Job], most: int, begins: Callable[[Job], object], ends: Callable[[Job], object],
    imports: Sequence[str] = (),
) -> dict[str, float]:  # fmt: skip
    """Runs jobs, `most` at a time, the first that can be begun first; the CPU seconds that each took.

    Args:
        begins, ends: told of each job.
        imports: modules that the jobs need; imported once for all of them where processes can be forked.

    Raises:
        UserError: one of them failed; the others are stopped, as by a signal, with their states saved.
        Interrupted: a signal came; likewise.
    """
    forks = "forkserver" in get_all_start_methods()
    context: Any = get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(list(imports))
    left, stop = list(jobs), Stop()
    spent: dict[str, float] = {}
    running: dict[Any, tuple[Any, Job, connection.Connection]] = {}
    try:
        with stop.listening():
            while left or running:
                for job in [job for job in left if spent.keys() >= set(job.needs)][: most - len(running)]:
                    left.remove(job)
                    begins(job)
                    reader, writer = context.Pipe(duplex=False)
                    process = context.Process(target=_run, args=(job, writer))
                    with _no_main():
                        process.start()
                    running[process.sentinel] = process, job, reader
                for sentinel in connection.wait(list(running), POLL):
                    process, job, reader = running.pop(sentinel)
                    process.join()
                    if process.exitcode:
                        raise UserError(f"{job.name}: {first_error(job.log, process.exitcode)}")
                    spent[job.name] = reader.recv()
                    ends(job)
                if stop.asked:
                    raise Interrupted("stopped; the same command goes on from there.", stop.code)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.join()
    return spent


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Inside, a new process does not import the script that started this one, which may be anything."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _run(job: Job, told: connection.Connection) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            code = cli.main(lambda words: job.call(), [])
        except Exception:
            traceback.print_exc()  # into the log as well
            code = 1
    told.send(time.process_time())
    sys.exit(code)
