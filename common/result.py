"""The Python API that the three domains share: swap, load a run, and what comes out of either."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from common import report
from common.adapters.named import Named
from common.config import apply_values, flag, from_values
from common.errors import UserError
from common.evaluation.run_measures import history_of
from common.frozen import FrozenConfig
from common.record import METRICS, Callback, read_lines
from common.run_flags import run_parser
from common.session import Session
from common.settings import Settings, settings_from
from common.splits import write_list
from common.trainer import run_plan

Told = Callable[[Mapping[str, Any]], None]  # what a watching function is


class Result:
    """A finished run.

    model:  in eval mode, with the adapter in place; `common.adapters.merge(model)` gives a copy with plain layers.
    folder: where its record lies.
    """

    def __init__(
        self, folder: Path, model: nn.Module, classes: Sequence[str], session: Session, given: Mapping[str, Any],
        flags: Mapping[str, Any], temporary: str = "",
    ) -> None:  # fmt: skip
        self.folder, self.model, self.classes = folder, model, tuple(classes)
        self._session, self._given, self._flags = session, given, flags  # given: objects for --checkpoint and --data
        if temporary:  # lives as long as its result
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.folder / METRICS)

    @property
    def before(self) -> dict[str, float]:
        """Group -> score before training, 0..100."""
        return history_of(self.metrics)[0]

    @property
    def scores(self) -> dict[str, float]:
        """Group -> score at the end, 0..100."""
        return history_of(self.metrics)[-1]

    def report(self, path: str | Path) -> Path:
        """Writes the page of the run as one HTML file; its path."""
        return report.write([self.folder], path)

    def prove(self, **settings: Any) -> dict[str, Any]:
        """Attacks what the run says it forgot, as `prove` does: references, reference_runs, budget, device.

        Returns:
            The content of proof.json, which is written into the run folder beside proof.html; "verdicts" first.
        """
        from common.evaluation import prove, prove_config  # scikit-learn takes a second

        names = [item.name for item in fields(prove_config.ProveConfig)]
        config = from_values(prove_config.ProveConfig, settings)
        flags = {**self._flags, **{name: value for name, value in settings.items() if name not in names}}
        return prove.prove(self._session, self.folder, config, flags, **self._given)

    def save(self, path: str | Path) -> Path:
        """Copies the run folder (adapter, record, scores) to a new folder that `load_run` reads; its path.

        Raises:
            UserError: there is something already.
        """
        if Path(path).exists():
            raise UserError(f"{path} exists already; choose another folder.")
        return Path(shutil.copytree(self.folder, path))


SWAP = """Learns and forgets {what}; the model that was given is not changed.

Args:
    model: {model}.
    data: a path that --data takes, or (train, test): two torch Datasets of {pairs}. Images are PIL images, uint8 arrays
        [H, W, 3] or tensors [3, H, W] (uint8, or float in 0..1). Labels are named by the Datasets' `classes`, or by
        `data_classes=[...]`. An index gives the same pair at every call; images are augmented here.
    train, test: the two Datasets by name, instead of data.
    learn, forget: class names; all other classes that the model knows and the data shows are retained.
    settings: any flag of `swap --help-all` by its name (epochs=5, lr=1e-3, method="replay", seed=0), and `callbacks`:
        functions called with ("steps" or "metrics", record) as the run goes on; `on_step(record)` after every step,
        `on_evaluate(found)` and `on_phase_end(found)` with the scores of all groups. Without `output_dir` the run folder
        is temporary; `Result.save` keeps it.

Returns:
    A `Result` with `scores` ({scores} by group), `model`, `report(path)` and `save(path)`.

Raises:
    UserError: what a command would refuse, in one line.
"""


class Swap(Protocol):
    """What `swap` of a domain's package takes."""

    def __call__(
        self, model: str | Path | nn.Module, data: Any = None, learn: Sequence[str] = (), forget: Sequence[str] = (),
        **settings: Any,
    ) -> Result: ...  # fmt: skip


def swapper(session: Session, **words: str) -> Swap:
    """`swap` of a domain's package. words: what its docstring says of this domain."""

    def own(
        model: str | Path | nn.Module, data: Any = None, learn: Sequence[str] = (), forget: Sequence[str] = (),
        **settings: Any,
    ) -> Result:  # fmt: skip
        return swap(session, model, data, learn, forget, **settings)

    own.__name__ = own.__qualname__ = "swap"
    own.__doc__ = SWAP.format(**words)
    return own


def swap(
    session: Session, model: str | Path | nn.Module, data: Any = None, learn: Sequence[str] = (),
    forget: Sequence[str] = (), train: Any = None, test: Any = None, callbacks: Sequence[Callback] = (),
    on_step: Told | None = None, on_evaluate: Told | None = None, on_phase_end: Told | None = None, **settings: Any,
) -> Result:  # fmt: skip
    """One swap; see `swap` of a domain's package."""
    if settings.get("dry_run"):
        raise UserError("`dry_run` is for the command line: `swap --dry-run` prints what a run would do.")
    if train is not None or test is not None:
        if data is not None or train is None or test is None:
            raise UserError("name the images once: `data=` (a path, or a pair), or `train=` and `test=`, two Datasets.")
        data = (train, test)
    temporary = "" if settings.get("output_dir") else tempfile.mkdtemp(prefix="swap-")
    if temporary:
        settings |= {"output_dir": f"{temporary}/run"}
    values = {"report": False, **settings, "learn": tuple(learn), "forget": tuple(forget)}
    given = {}
    for name, value, place in (("model", model, "checkpoint"), ("data", data, "data")):
        if isinstance(value, str | Path):
            values[place] = str(value)
        else:
            given[name], values[place] = value, ""
    try:
        chosen = _settings(session, values, given)
        opening = session.open_swap(chosen)
        watch = _watcher(len(opening.plan.groups), on_step, on_evaluate, on_phase_end)
        trainer = run_plan(opening, chosen, session.name, [*callbacks, watch])
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Result(trainer.run.folder, trainer.model.eval(), trainer.domain.classes.names, session, given, {}, temporary)


def _watcher(groups: int, on_step: Told | None, on_evaluate: Told | None, on_phase_end: Told | None) -> Callback:
    """One callback of the three functions; the lines of the groups of one scoring become one record."""
    lines: list[Mapping[str, Any]] = []

    def watch(kind: str, record: Mapping[str, Any]) -> None:
        if kind == "steps" and on_step:
            on_step(record)
        if "group" not in record or "score" not in record:
            return
        lines.append(record)
        if len(lines) < groups:
            return
        found = {name: record[name] for name in ("phase", "action", "epoch", "step", "end")}
        found["scores"] = {line["group"]: line["score"] for line in lines}
        lines.clear()
        if on_evaluate:
            on_evaluate(found)
        if on_phase_end and record["end"] and record["phase"]:
            on_phase_end(found)

    return watch


def _settings(session: Session, values: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The settings of a swap by flag name, checked as flags are."""
    parser = run_parser(session, "swap", _as_words(values))
    apply_values(parser, {name: value for name, value in values.items() if name != "reference"}, "")
    return settings_from(session.run_kinds("swap"), vars(parser.parse_args([])), **given)


def _as_words(values: Mapping[str, Any]) -> list[str]:
    """The values as a command line, for what looks at it before flags are parsed."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            words += [flag(name), *map(str, value)]
        elif value is True:
            words.append(flag(name))
        elif value is not None and value is not False:
            words.append(f"{flag(name)}={value}")
    return words


def _flags(session: Session, given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a domain by name, lists of names as the command line has them. Raises UserError for an unknown one."""
    known = {item.name for kind in (session.source, session.view, FrozenConfig) for item in fields(kind)}
    for name in given:
        if name not in known | {*session.lists}:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(f"load_run has no setting {name!r}" + (f"; did you mean {near[0]}?" if near else "."))
    texts = [name for name, value in given.items() if isinstance(value, list | tuple) and name not in session.lists]
    return {**given, **{name: write_list(map(str, given[name])) for name in texts}}


def loader(session: Session) -> Callable[..., Result]:
    """`load_run` of a domain's package."""

    def load_run(path: str | Path, model: nn.Module | None = None, **flags: Any) -> Result:
        """The result of a finished run.

        Args:
            path: the run folder, what `Result.save` wrote, or hf:OWNER/NAME, which is fetched.
            model: the base model, where the run was started with a model object.
            flags: flags that win over the recorded ones, such as checkpoint="moved.pth".

        Raises:
            UserError: there is no run, or no result yet.
        """
        path, flags = session.run_folder(path), _flags(session, flags)
        if not session.is_run(path):
            raise UserError(f"{path} is no run (config.json is missing); name the folder of a finished swap.")
        base = session.load(path, flags, model).base
        return Result(Path(path), base.model, base.classes, session, {} if model is None else {"model": model}, flags)

    return load_run


def loader_of_several(session: Session) -> Callable[..., Named]:
    """`load_runs` of a domain's package."""

    def load_runs(
        runs: Mapping[str, str | Path] | Sequence[str | Path], model: nn.Module | None = None, **flags: Any
    ) -> Named:
        """Adapters of several runs on one base: `with load_runs(...).using("birds") as model`.

        Args:
            runs: run folders by name, or a list of them, which are called by their folders.
            model, flags: as of `load_run`, for the base of the first run; it must be the base of all.

        Raises:
            UserError: no runs, or one that belongs to another base.
        """
        named = runs if isinstance(runs, Mapping) else {Path(run).name: run for run in runs}
        if not named:
            raise UserError("no runs are named; name run folders.")
        first = session.load_base(session.run_folder(next(iter(named.values()))), _flags(session, flags), model)
        swaps = Named(first.model, first.classes)
        for name, run in named.items():
            swaps.add(name, session.run_folder(run))
        return swaps

    return load_runs
