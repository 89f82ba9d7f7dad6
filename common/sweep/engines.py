"""Where the rows of a sweep run: processes on this machine, or jobs of a Slurm cluster through submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import launch
from common.claim import in_use
from common.errors import Interrupted, UserError
from common.knobs import Checked, knob
from common.stop import Stop
from common.sweep.rows import Row

Engine = Callable[[Sequence[Row], "EngineConfig", Path], Iterator["Outcome"]]
Outcome = tuple[Row, float, str]  # row, seconds, first line of the error or ""
POLL = 0.2  # seconds
INTERRUPTED = 130  # exit code of Ctrl-C


def check_extra(package: str) -> None:
    """Raises UserError where an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"this needs {package}: pip install 'knowledge-swapping[sweep]', or pip install {package}")


@dataclass
class EngineConfig(Checked):
    """Where and how the rows run."""

    engine: str = knob(
        "local",
        "processes on this machine, jobs of a Slurm cluster, or submitit's jobs on this machine",
        ["local", "slurm", "submitit-local"],
    )
    jobs: int = knob(1, "rows at a time; local ones share the machine's threads", least=1)
    partition: str = knob("", "Slurm partition")
    gpus: int = knob(0, "GPUs of a row on each node, one process each (torchrun's launcher)", least=0)
    nodes: int = knob(1, "nodes of a row (slurm)", least=1)
    cpus: int = knob(4, "CPU cores of a row on each node (slurm)", least=1)
    minutes: int = knob(240, "time limit of a job; at its end the row is saved, requeued and goes on (slurm)", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes > 1 and self.engine != "slurm":
            raise UserError(f"`--nodes {self.nodes}` needs --engine slurm; this is one machine.")


@dataclass
class Task:
    """One row as a process of its own, whose output goes into a file; submitit pickles and calls it."""

    row: Row
    config: EngineConfig
    log: Path
    threads: int = 0
    process: Any = field(default=None, repr=False)
    stopped: bool = False

    def __call__(self) -> str:
        """Carries the row out, or waits for the process that already does; the first line of its error or ""."""
        while in_use(self.row.folder) and not self.stopped:
            time.sleep(POLL)
        if self.row.done or self.stopped:
            return ""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **launch.NEW_STORE,
            **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}),
        }
        with self.log.open("wb") as log, _blocked("SIGUSR2"):  # of its own session: signals reach it through us
            self.process = subprocess.Popen(
                [sys.executable, *self._words()], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            if self.stopped:  # in the meantime
                self.process.terminate()
            code = self.process.wait()
        except BaseException:  # a cancelled job
            self.stop()
            raise
        self.process = None
        return "" if code == 0 or self.stopped else first_error(self.log, code)

    def _words(self) -> Sequence[str]:
        if self.config.gpus < 2 and self.config.nodes == 1:
            return self.row.words
        head, job = "localhost", self.row.name
        if self.config.engine == "slurm":
            import submitit  # an extra

            environment = submitit.JobEnvironment()
            head, job = environment.hostnames[0], environment.job_id
        return [*launch.launcher(self.config.nodes, self.config.gpus, head, job), *self.row.words]

    def stop(self) -> None:
        """Asks the process to save its state and end."""
        self.stopped = True
        if self.process is not None:
            self.process.terminate()

    def checkpoint(self) -> Any:
        """What submitit calls before a job is preempted or out of time: the same task, queued again."""
        import submitit

        process = self.process
        self.stop()
        if process is not None:  # called by a signal handler, inside of `wait` above, which must not be entered twice
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Task(self.row, self.config, self.log, self.threads))


@contextlib.contextmanager
def _blocked(name: str) -> Iterator[None]:
    """Inside, processes start deaf to a signal. Slurm sends its warning to every process of a job, and who does not
    know it dies of it; `Task.checkpoint` passes it on in words that a row knows."""
    number = getattr(signal, name, None)  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number]) if number else ()
    try:
        yield
    finally:
        if number:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def first_error(log: Path, code: int) -> str:
    """The line that says why a process failed: "error: ...", or the last one, of a traceback."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[0] if told else lines[-1].strip() if lines else f"exit code {code}"


def local(rows: Sequence[Row], config: EngineConfig, logs: Path) -> Iterator[Outcome]:
    """Runs the rows in `jobs` processes at a time; each outcome as it comes. Ctrl-C and SIGTERM stop and save them.

    Raises:
        Interrupted: a signal came.
    """
    tasks = [Task(row, config, logs / f"{row.name}.txt", _share(config)) for row in rows]
    stop = Stop()
    with ThreadPoolExecutor(config.jobs) as pool, stop.listening():
        waiting = {pool.submit(_timed, task): task for task in tasks}
        while waiting:
            finished, _ = wait(waiting, POLL, FIRST_COMPLETED)
            if stop.asked:
                for task in tasks:
                    task.stop()
                wait(waiting)
                raise Interrupted("stopped; the same command goes on from there.", stop.code)
            for future in finished:
                yield (waiting.pop(future).row, *future.result())


def _share(config: EngineConfig) -> int:
    """Threads of a row, where rows share this machine."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", 0) or os.cpu_count() or 1) // config.jobs)


def _timed(task: Callable[[], str]) -> tuple[float, str]:
    began = time.monotonic()
    error = task()
    return time.monotonic() - began, error


def scheduled(rows: Sequence[Row], config: EngineConfig, logs: Path) -> Iterator[Outcome]:
    """Submits the rows through submitit and waits; each outcome as it comes. To Slurm they go as one array of jobs, which
    only Ctrl-C cancels; on this machine `jobs` at a time, which every signal stops and saves.

    Raises:
        UserError: no Slurm here.
        Interrupted: a signal came.
    """
    import submitit

    here = config.engine != "slurm"
    if not here and not (shutil.which("srun") and shutil.which("sbatch")):
        raise UserError(
            "there is no Slurm here (no `sbatch` to be found); use --engine local or submitit-local, or look with --dry-run."
        )
    executor = submitit.AutoExecutor(
        folder=logs / "%j", cluster="local" if here else "slurm", slurm_max_num_timeout=1000
    )
    executor.update_parameters(**_parameters(config))
    left, began, stop = list(rows), time.monotonic(), Stop()
    jobs: dict[Any, Row] = {}
    with stop.listening():
        while jobs or left:
            room = config.jobs - len(jobs) if here else len(left)
            new, left = left[:room], left[room:]
            if new:
                with executor.batch():
                    tasks = [Task(row, config, logs / f"{row.name}.txt", _share(config) if here else 0) for row in new]
                    submitted = [executor.submit(task) for task in tasks]
                jobs |= dict(zip(submitted, new, strict=True))
            for job in [job for job in jobs if job.done()]:
                row = jobs.pop(job)
                try:
                    error = job.result()
                except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as failure:
                    error = str(failure).strip().splitlines()[-1]
                yield row, time.monotonic() - began, error
            if stop.asked:
                for job in jobs if here or stop.code == INTERRUPTED else ():
                    job.cancel()
                while here and any(in_use(row.folder) for row in jobs.values()):
                    time.sleep(POLL)
                raise Interrupted("stopped; the same command goes on from there.", stop.code)
            time.sleep(POLL)


def sbatch(rows: Sequence[Row], config: EngineConfig, logs: Path) -> str:
    """The batch script that goes to Slurm."""
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string  # not public; nothing public tells it

    names: dict[str, Any] = dict(SlurmExecutor._equivalence_dict())
    given = {names.get(k, k.removeprefix("slurm_")): value for k, value in _parameters(config).items()}
    return _make_sbatch_string("python -m submitit.core._submit ...", logs / "%j", map_count=len(rows), **given)


def _parameters(config: EngineConfig) -> dict[str, Any]:
    found = {
        "name": "sweep", "timeout_min": config.minutes, "nodes": config.nodes, "tasks_per_node": 1,
        "cpus_per_task": config.cpus, "gpus_per_node": config.gpus, "slurm_partition": config.partition,
        "slurm_array_parallelism": config.jobs,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}
