"""`prove`: models, attacks, figures, verdict, page. What is done lies in <run>/proof and is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from common import devices, report
from common.evaluation import shadows, verdict
from common.evaluation.bench import Bench
from common.evaluation.budget import BUDGETS
from common.evaluation.figures import RESULT
from common.evaluation.manifest import items_of, manifest
from common.evaluation.retrained import COUNT
from common.evaluation.subjects import Case, moved_to
from common.knobs import Checked, knob
from common.record import write_json
from common.report import proof as page
from common.session import Session
from common.splits import read_list

SCHEMA = 1


@dataclass
class ProveConfig(Checked):
    """The proof."""

    references: int = knob(COUNT, "models without the forgotten classes to train and compare with; 0: none", least=0)
    reference_runs: str = knob("", "run folders of such models, comma separated, instead of training some")
    shadow_runs: str = knob("", "base models that know the forgotten classes but not all their pictures, for RMIA")
    jobs: int = knob(0, "references trained at a time; 0: one per core of the CPU, one on a GPU")
    budget: str = knob("quick", "how much the attacker may spend", list(BUDGETS))
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")


def prove(
    session: Session, folder: Path, config: ProveConfig, given: Mapping[str, Any], model: Any = None, data: Any = None
) -> dict[str, Any]:  # fmt: skip
    """Attacks a finished run and writes proof.json and proof.html into its folder; the content of proof.json."""
    with one_thread():
        return Proof(Case(session, folder, given, model, data), config).run()


class Proof:
    """One proof in progress."""

    def __init__(self, case: Case, config: ProveConfig) -> None:
        self.case, self.config, self.budget = case, config, BUDGETS[config.budget]
        self.folder = case.folder / "proof"
        self.items = items_of(case.folder)
        self.device = devices.choose_device(config.device, 0)

    def run(self) -> dict[str, Any]:
        began = time.monotonic(), time.process_time()
        case = self.case
        own = case.own()  # what is damaged in the run is found before references are trained
        folders, no_reference = self._references()
        self.bench = Bench(case.forgotten, case.retained, case.learned, self.budget, float(case.flags["lr"]), int(case.flags["batch_size"]),
                           self.folder / "cache", 2 + len(folders))  # fmt: skip
        for subject in own:
            self.bench.attack(moved_to(subject, self.device))
        for number, folder in enumerate(folders, 1):
            self.bench.attack(moved_to(case.reference(number, folder), self.device))
        self._shadows()
        found = self._record(folders, no_reference)
        found["seconds"] = {"wall": time.monotonic() - began[0], "cpu": time.process_time() - began[1]}
        write_json(self.case.folder / "proof.json", found)
        page.write(found, self.case.folder / "proof.html", self.bench.pictures)
        if (self.case.folder / "report.html").exists():
            report.write([self.case.folder], self.case.folder / "report.html")
        return found

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

    def _references(self) -> tuple[list[Path], str]:
        """(folders, why there are none)."""
        if self.config.reference_runs:
            return self.case.given_references([Path(text) for text in read_list(self.config.reference_runs)]), ""
        if not self.config.references:
            return [], "none was wanted"
        found, reason = self.case.references()
        if found is None:
            return [], reason
        cores = 1 if self.device.type != "cpu" else os.cpu_count() or 1
        return found.train(self.config.references, self.config.jobs or min(self.config.references, cores)), ""

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
            "warnings": verdict.warnings(counts, case.shared() if references else ()),
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
