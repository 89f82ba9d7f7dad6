"""`prove`: models, attacks, figures, verdict, page. What is done lies in <run>/proof and is not done again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from common import devices, report
from common.evaluation import retrained, shadows, verdict
from common.evaluation.bench import Bench, Watch
from common.evaluation.budget import BUDGETS
from common.evaluation.figures import ORIGINAL, REFERENCE, RESULT
from common.evaluation.manifest import items_of, manifest
from common.evaluation.prove_config import ProveConfig, imports
from common.evaluation.subjects import Case, moved_to
from common.jobs import Job, carry_out
from common.record import write_json
from common.report import proof as page
from common.session import Session
from common.splits import read_list
from common.sweep.rows import Row

SCHEMA = 1


def prove(
    session: Session, folder: Path, config: ProveConfig, given: Mapping[str, Any], model: Any = None, data: Any = None
) -> dict[str, Any]:  # fmt: skip
    """Attacks a finished run and writes proof.json and proof.html into its folder; the content of proof.json."""
    with one_thread():
        return Proof(Case(session, folder, given, model, data), config).run()


class Reference(NamedTuple):
    """A model that never saw the classes.

    cache: where its attacks lie for every run of this base; None: with the proof. rows: what trains it; () if given.
    """

    folder: Path
    cache: Path | None = None
    rows: tuple[Row, ...] = ()


class Proof:
    """One proof in progress."""

    def __init__(self, case: Case, config: ProveConfig) -> None:
        self.case, self.config, self.budget = case, config, BUDGETS[config.budget]
        self.folder = case.folder / "proof"
        self.items = items_of(case.folder)
        self.device = devices.choose_device(config.device, 0)
        self.bench = Bench(case.forgotten, case.retained, case.learned, self.budget, case.attack_rate(),
                           int(case.flags["batch_size"]), self.folder / "cache")  # fmt: skip

    def run(self) -> dict[str, Any]:
        began = time.monotonic(), time.process_time()
        case = self.case
        own = case.own()  # what is damaged in the run is found before references are trained
        references, no_reference = self._references()
        jobs = self._prepare(references)
        self.bench.watch = Watch(3 * (2 + len(references)) + 4)
        for subject in own:
            self.bench.attack(moved_to(subject, self.device))
        for number, one in enumerate(references, 1):
            self.attack(number, one)
        self._shadows()
        found = self._record([one.folder for one in references], no_reference)
        found["seconds"] = {
            "wall": time.monotonic() - began[0],
            "cpu": time.process_time() - began[1] + sum(jobs.values()),
        }
        found["seconds"]["jobs"] = jobs
        write_json(self.case.folder / "proof.json", found)
        page.write(found, self.case.folder / "proof.html", self.bench.pictures)
        if (self.case.folder / "report.html").exists():
            report.write([self.case.folder], self.case.folder / "report.html")
        return found

    def attack(self, number: int, reference: Reference | None = None) -> None:
        """Attacks one model: 0 the original, 1 the result; or a reference, by its number."""
        if reference is None:
            self.bench.attack(moved_to(self.case.own()[number], self.device))
            return
        subject = moved_to(self.case.reference(number, reference.folder), self.device)
        self.bench.attack(subject, reference.cache)

    def _shadows(self) -> None:
        """RMIA, where models for it are named."""
        for number, text in enumerate(read_list(self.config.shadow_runs)):
            folder = self.case.shadow(Path(text))
            if not number:
                for subject in self.case.own():
                    moved_to(subject, self.device)
                    self.bench.shadow(subject.domain, subject.model, name=subject.name)
            subject = moved_to(self.case.reference(number, folder), self.device)
            self.bench.shadow(subject.domain, subject.model, shadows.used(folder))

    # ---- references --------------------------------------------------------------------------------------

    def _references(self) -> tuple[list[Reference], str]:
        """(models that are to be compared with, why there are none)."""
        if self.config.reference_runs:
            folders = self.case.given_references([Path(text) for text in read_list(self.config.reference_runs)])
            return [Reference(folder) for folder in folders], ""
        if not self.config.references:
            return [], verdict.UNWANTED
        found, reason = self.case.references(self.config.reference_share)
        if found is None:
            return [], reason
        every = found.rows(self.config.references)
        return [Reference(rows[-1].folder, found.place / "cache", rows) for rows in every], ""

    def _share(self) -> float:
        """Of the recipe's steps that trained the references."""
        return 1.0 if self.config.reference_runs else self.config.reference_share

    def _prepare(self, references: Sequence[Reference]) -> dict[str, float]:
        """Trains the references that are missing; on a CPU side by side, and the attacks too where they take long. The
        CPU seconds of the processes that did it."""
        missing = [one.rows for one in references if one.rows and not one.rows[-1].done]
        rows = [row for own in missing for row in own if not row.done]
        if rows:
            cost = retrained.cost(self.case.session, self.case.flags["checkpoint"])
            print(f"proof: training {len(missing)} models that never saw the forgotten classes{cost}", file=sys.stderr)
        most = self.config.jobs or (1 if self.device.type != "cpu" else (os.cpu_count() or 1) + 1)
        case, objects = self.case, self.case.model is not None or self.case.data is not None
        if most == 1 or objects or not (rows or self.budget.radius):
            for row in rows:
                retrained.train(case.session, row)
            return {}
        jobs = []
        for own in missing:
            for before, row in zip((None, *own), own, strict=False):
                needs = [before.name] if before in rows else []
                jobs.append(
                    Job(row.name, partial(retrained.train, case.session, row), row.folder.with_suffix(".txt"), needs)
                )
        models: list[tuple[int, Reference | None]] = [(0, None), (1, None), *enumerate(references, 1)]
        for number, one in models:
            name = f"attacks on {(ORIGINAL, RESULT)[number] if one is None else f'{REFERENCE} {number}'}"
            call = partial(_attack, case.session, case.folder, case.given, self.config, number, one)
            needs = [one.rows[-1].name] if one is not None and one.rows in missing else []
            jobs.append(Job(name, call, self.folder / f"{name}.txt", needs))
        left, began = len(jobs), time.monotonic()

        def ends(job: Job) -> None:
            nonlocal left
            left, spent = left - 1, time.monotonic() - began
            print(
                f"proof: {job.name}: done after {spent:.0f} s; {left} of {len(jobs)} left", file=sys.stderr, flush=True
            )

        return carry_out(jobs, most, lambda job: None, ends, imports(case.session))

    def _record(self, references: list[Path], no_reference: str) -> dict[str, Any]:
        case, bench = self.case, self.bench
        figures = bench.compare()
        labels = bench.answers[RESULT].test.labels
        counts = {name: int((labels == i).sum()) for i, name in enumerate(case.forgotten)}
        adapter = (case.folder / "adapter").is_dir()
        flagged = verdict.above(figures)
        found = verdict.verdicts(figures, bench.not_run, self.budget.name, adapter, no_reference)
        return {
            "schema": SCHEMA,
            "run": case.folder.name,
            "domain": case.session.name,
            "forgotten": case.forgotten,
            "known": case.known,
            "verdicts": verdict.plain(found),
            "warnings": verdict.warnings(counts, len(references), case.shared(), self._share()),
            "reference_share": self._share(),
            "errors": verdict.errors(len(references)),
            "curve": bench.unit,
            "figures": [f.record() | ({"above": f in flagged} if f.headline else {}) for f in figures],
            "not_run": bench.not_run,
            "no_reference": no_reference,
            "answers": bench.battery().confusions(),
            "curves": bench.curves,
            "anamnesis": bench.anamnesis(),
            "budget": self.budget.record(),
            "test_items": counts,
            **manifest(case, bench.keys, references, self.items),
        }


def _attack(
    session: Session, folder: Path, given: Mapping[str, Any], config: ProveConfig, number: int, one: Reference | None
) -> None:
    """One model of a proof, in a process of its own: what its attacks give lies in the cache afterwards."""
    with one_thread():
        Proof(Case(session, folder, given), config).attack(number, one)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, sums are taken in one order whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def summary(found: Mapping[str, Any]) -> str:
    """The verdicts as lines of text."""
    lines = [f"{v['headline']} {v['text']}" for v in found["verdicts"]]
    return "\n".join(
        [*lines, *found["warnings"], *(f"not run: {name}: {why}" for name, why in found["not_run"].items())]
    )
