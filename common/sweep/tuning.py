"""Settings chosen by Optuna: the same number of trials for every row, each an ordinary run."""

from __future__ import annotations

import json
import os
import shlex
import socket
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common.claim import PART, alone, exists
from common.config import flag
from common.errors import UserError
from common.record import write_text
from common.report.columns import chosen
from common.report.runs import read_run
from common.sweep.rows import Row, Sweep

Carried = Callable[[Sequence[Row]], Mapping[str, str]]  # rows -> errors by name
FILE = "tune.sqlite"
PRIOR = 0  # of the seeds of the sampler


def tune(sweep: Sweep, trials: int, jobs: int, carried_out: Carried) -> dict[str, str]:
    """Tries settings until every row, whatever its seeds, has had `trials` of them; the best flags by row.

    The trials are kept in tune.sqlite, which several of these commands may share; those of one that was killed are taken
    up by the others, or by the next command. Trial k of a row draws from its own seed, so that a killed command proposes
    what an undisturbed one would.

    Args:
        jobs: trials at a time.
        carried_out: runs rows.

    Raises:
        UserError: the file's `tune` says nothing of what varies, or names no measure.
    """
    import optuna  # an extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = {row.label: row for row in reversed(sweep.rows)}
    spaces = {label: space_of(row, sweep.tune) for label, row in rows.items()}
    objective = str(sweep.tune.get("objective", "h_mean"))
    direction = "minimize" if objective.startswith("-") else "maximize"
    kept: dict[str, Any] = {"storage": _address(sweep.out / FILE), "direction": direction, "load_if_exists": True}
    with alone(sweep.out, "tune.lock"):
        _create(sweep.out / FILE)
        studies = {label: optuna.create_study(study_name=label, **kept) for label in rows}
    while asked := _round(studies, spaces, trials, jobs, sweep.out):
        made = {_trial_row(rows[label], sweep, trial.params): (label, trial) for label, trial in asked}
        errors = carried_out(list(made))
        for row, (label, trial) in made.items():
            value = None if row.name in errors else _measured(row.folder, objective.lstrip("-"))
            lost = optuna.trial.TrialState.PRUNED  # a run without a result is a bad one
            studies[label].tell(trial, value, state=lost if value is None else None)
    with alone(sweep.out, "tune.lock"):  # so that the worker that ends last writes what all of them found
        best = {label: _best(study) for label, study in studies.items()}
        write_text(sweep.out / "tuned.yaml", "".join(f"{json.dumps(k)}: {v}\n" for k, v in best.items()))
    return best


def _address(path: Path) -> str:
    return f"sqlite:///{path}"


def _create(path: Path) -> None:
    """Writes an empty study file where there is none; who opens it beside this command finds all of its tables, or none."""
    import optuna

    if path.exists():
        return
    part = path.with_name(f".{path.name}{PART}")
    part.unlink(missing_ok=True)  # of a command that was killed
    storage = optuna.storages.RDBStorage(_address(part))
    storage.remove_session()
    storage.engine.dispose()
    part.replace(path)


def space_of(row: Row, options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Flag name -> what it may be, of every pattern under `range` that fits the row."""
    found: dict[str, list[Any]] = {}
    for pattern, ranges in options.get("range", {}).items():
        if fnmatch(row.label, pattern):
            found |= ranges
    if not found:
        raise UserError(
            f"`tune`: no `range` fits row {row.label!r}; add `range: {{'*': {{lr: [1.0e-4, 1.0e-2, log]}}}}`."
        )
    return found


def _round(
    studies: Mapping[str, Any], spaces: Mapping[str, Any], trials: int, jobs: int, place: Path
) -> list[tuple[str, Any]]:
    """The next trials of every row that lacks some, about `jobs` together; first those of workers that were killed."""
    import optuna

    failed, waiting = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.WAITING
    asked: list[tuple[str, Any]] = []
    with alone(place, "tune.lock"):
        for study in studies.values():
            _take_up_the_dead(study)
        for label, study in studies.items():
            for _ in range(max(1, jobs // len(studies))):
                begun = [t for t in study.get_trials(False) if t.state not in (failed, waiting)]
                if len(begun) >= trials:
                    break
                trial = study.ask()
                trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])
                earlier = sum(t.number < trial.number and t.state != failed for t in study.get_trials(False))
                study.sampler = optuna.samplers.TPESampler(seed=PRIOR + zlib.crc32(f"{label} {earlier}".encode()))
                for name, values in spaces[label].items():
                    _suggest(trial, name, values)
                asked.append((label, trial))
    return asked


def _suggest(trial: Any, name: str, values: list[Any]) -> Any:
    log, bounds = values[-1] == "log", [v for v in values if v != "log"]
    if len(bounds) != 2 or not all(type(v) in (int, float) for v in bounds):
        return trial.suggest_categorical(name, values)
    kind = trial.suggest_int if all(type(v) is int for v in bounds) else trial.suggest_float
    return kind(name, *bounds, log=log)


def _take_up_the_dead(study: Any) -> None:
    """Queues again what a process of this machine that has ended left unfinished; its folder goes on.

    Under the lock, a trial that no worker has put its name on is one of a worker that was killed while it held the lock.
    """
    import optuna

    for trial in study.get_trials(False, (optuna.trial.TrialState.RUNNING,)):
        host, pid = trial.user_attrs.get("worker", [socket.gethostname(), None])
        if host == socket.gethostname() and (pid is None or not exists(pid)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _trial_row(row: Row, sweep: Sweep, params: Mapping[str, Any]) -> Row:
    """The row with the flags of a trial, in a folder named after them."""
    own = _flags(params)
    name = f"{row.label}-{zlib.crc32(' '.join(own).encode()):08x}"
    folder = sweep.out / "tune" / name
    words = (*row.words[:-2], *shlex.split(str(sweep.tune.get("flags", ""))), *own, "--output-dir", str(folder))
    return Row(name, row.label, words, folder)


def _flags(params: Mapping[str, Any]) -> list[str]:
    return [w for k, v in sorted(params.items()) for w in (flag(k), f"{v:.4g}" if isinstance(v, float) else str(v))]


def _measured(folder: Path, name: str) -> float | None:
    runs = [read_run(folder)]
    values = chosen([name], runs)[name].read(runs, runs)
    return statistics.fmean(values) if values else None


def _best(study: Any) -> str:
    """The flags of the best trial so far, and of how many it is the best."""
    import optuna

    state = optuna.trial.TrialState
    ended, others = (
        len(study.get_trials(False, states)) for states in ((state.COMPLETE, state.PRUNED), (state.RUNNING,))
    )
    if not study.get_trials(False, (state.COMPLETE,)):
        return "# no trial has a result"
    told = f"{study.best_value:.2f} in {ended} trials" + (f"; {others} still run elsewhere" if others else "")
    return f"{shlex.join(_flags(study.best_params))}  # {told}"
