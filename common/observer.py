"""What a run records: scores, the adapters' profile, test pictures, the exported result."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import adapters, distributed, lora, precision
from common.domain import Domain
from common.errors import UserError
from common.evaluation import spill
from common.evaluation.run_measures import class_history_of, history_of, measures, weights_of
from common.guard import Guard
from common.hub import PREFIX
from common.methods._base import Position
from common.plan import Phase, Plan
from common.record import METRICS, PHASES, Run, name_of, read_run_config
from common.rows import TrainedRows
from common.sampling import Sampling
from common.sparsity import block_of, group_norms, groups, zero_group_ratio
from common.train_config import TrainConfig

Factors = dict[str, tuple[Tensor, Tensor]]


class Observer:
    """Scores a model and writes down what it sees; changes nothing in it.

    metrics: the lines of metrics.jsonl so far.
    """

    def __init__(
        self, domain: Domain, plan: Plan, model: nn.Module, run: Run, format: str, device: torch.device,
        config: TrainConfig, settles: Callable[[Phase], bool],
    ) -> None:  # fmt: skip
        self.domain, self.plan, self.model, self.run = domain, plan, model, run
        self.format, self.device, self.config = format, device, config
        self.sampling = Sampling(config, len(plan.groups), settles)
        self.metrics: list[dict[str, Any]] = []

    def of(self, model: nn.Module) -> Observer:
        """The same for another model, with the same record."""
        other = copy.copy(self)
        other.model = model
        return other

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The model in inference mode, adapters merged."""
        self.model.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(lora.merged(self.model))
            stack.enter_context(precision.autocast(self.format, self.device))
            yield

    def score(self, phase: int, action: str, epoch: int, step: int, end: bool) -> None:
        """Scores every group of the plan and records a line each; `end` marks the scores a phase ends with."""
        with self.answering():
            found = self.domain.evaluate_groups(self.model, self.plan.groups)
        moment = {"phase": phase, "action": action, "epoch": epoch, "step": step, "end": end}
        lines = []
        for group, evaluation in found.items():
            scores = dict(evaluation.scores)
            line = moment | {"group": group, "metric": self.domain.metric, "score": scores.pop("total")}
            lines.append(line | {"weight": self.domain.weight(self.plan.groups[group]), "per_class": scores})
        self.write(lines)
        if end and distributed.is_main():
            self.run.save_details(phase, found, self.domain.curve_axes)
        if distributed.is_main():
            told = "  ".join(f"{line['group']} {line['score']:.1f}" for line in lines)
            counted = self.config.steps or self.config.forget_steps
            when = (
                "before" if phase == 0 else f"phase {phase} {action}, {f'step {step}' if counted else f'epoch {epoch}'}"
            )
            print(f"  {when}: {self.domain.metric}  {told}", flush=True)

    def due(self, at: Position) -> bool:
        """Whether scores are taken after this step; those of a phase's last step are taken in any case."""
        return self._due_whole(at) or self.sampling.due(at)

    def look(self, at: Position) -> None:
        """Takes the scores that are due after this step."""
        if self.sampling.due(at):
            self.sample(at.phase, at.number + 1, at.total)
        if self._due_whole(at):
            self.score(at.phase.index, at.phase.action, at.epoch + 1, at.number + 1, end=False)

    def _due_whole(self, at: Position) -> bool:
        every, after = self.config.eval_every, at.number + 1
        return bool(every) and after % at.per_epoch == 0 and (at.epoch + 1) % every == 0 and after < at.total

    def sample(self, phase: Phase, step: int, total: int) -> None:
        """Scores a small sample of test items after a step of a phase of `total` steps, and records one line."""
        size = self.sampling.size(phase, total)
        if not size:
            return
        with self.answering():
            found = self.domain.evaluate_groups(self.model, self.plan.groups, size)
        if found:
            told = {group: evaluation.scores["total"] for group, evaluation in found.items()}
            self.write([{"phase": phase.index, "action": phase.action, "step": step, "sample": told, "items": size}])

    def profile(self, phase: Phase, before: Factors) -> None:
        """The profile over depth: each group's norm, how far its update moved in this phase, and zero groups."""
        members = groups(self.model)
        if not members:
            return
        norms = dict(zip(members, group_norms(members).tolist(), strict=True))
        own = {"adapter_norm": norms, "adapter_moved": moved(before, factors(self.model))}
        profile = own | {"zero_groups": zero_group_ratio(members)}
        self.write([{"phase": phase.index, "action": phase.action, **profile}])

    def expect(self) -> None:
        """Before the first phase: how the base would answer what the plan forgets, without those classes."""
        gone = tuple(dict.fromkeys(c for phase in self.plan.phases for c in spill.absent(phase)[0]))
        with self.answering():
            scores = self.domain.test_scores(self.model, gone)
        if scores:
            self.write(
                [{"phase": 0, "action": "start", "expected": spill.expected(scores, self.plan, self.domain.classes)}]
            )

    def look_at_forgotten(self, phase: Phase) -> None:
        """Where the answers on forgotten test items have gone, and how far kept classes are below their best."""
        gone, _ = spill.absent(phase)
        with self.answering():
            scores = self.domain.test_scores(self.model, gone)
        found: dict[str, Any] = {}
        if scores:
            base: dict[str, Any] = next((line["expected"] for line in self.metrics if "expected" in line), {})
            found["spill"] = spill.spill(scores, base.get(str(phase.index), {}), self.domain.classes)
        known = (*phase.keep, *(phase.target if phase.action == "learn" else ()))
        lost = spill.from_peak(class_history_of(self.metrics), known)
        if lost:
            found["from_peak"] = lost
        if found:
            self.write([{"phase": phase.index, "action": phase.action, **found}])

    def write(self, lines: list[dict[str, Any]]) -> None:
        self.metrics += lines
        if distributed.is_main():
            self.run.append(METRICS, lines)
            for line in lines:
                self.run.tell(METRICS, line)

    def show(self, moment: str) -> None:
        if not (self.config.gallery and distributed.is_main()):
            return
        with self.answering():
            items = [
                i
                for classes in self.plan.groups.values()
                for i in self.domain.gallery(self.model, classes, self.config.gallery)
            ]
        if items:
            self.run.save_gallery(moment, items)

    def export(self, method: str, rows: TrainedRows | None, guard: Guard, after: int = 0) -> None:
        """The result so far: the adapter folder, or the whole model where all parameters train.

        after: a phase that is not the last; its adapter is also kept as phases/<after>.
        """
        if not distributed.is_main():
            return
        told = [{g: v for g, v in scores.items() if math.isfinite(v)} for scores in history_of(self.metrics)] or [{}]
        info = {"classes": list(self.domain.classes.names), "method": method, "plan": self.plan.record(),
                "metric": self.domain.metric, "before": told[0], "scores": told[-1],
                "base_model": _base_name(self.run.flags)}  # fmt: skip
        info["run"] = name_of(self._identity())
        if lora.adapters(self.model):
            head = self.domain.head_rows(self.model, self.domain.classes.names)
            places = ["adapter", *([f"{PHASES}/{after}"] if 0 < after < len(self.plan.phases) else [])]
            for place in places:
                adapters.save(self.model, self.run.path(place), rows.rows if rows else {}, info, head)
            guard.save(self.run.path("adapter"))
        else:
            adapters.save_model(self.model, self.run.path("model"), info)

    def exported(self) -> bool:
        """Whether what `export` wrote is there, whole, and of this run."""
        if not distributed.is_main():
            return True
        read, place = (adapters.read, "adapter") if lora.adapters(self.model) else (adapters.read_model, "model")
        try:
            return adapters.belongs(read(self.run.path(place))[0], self._identity())
        except UserError:
            return False

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = read_run_config(self.run.folder)["identity"]
        return identity

    def end_phase(self, phase: Phase, epoch: int, step: int, before: Factors, guard: Guard) -> None:
        """Everything that is recorded at the end of a phase; `before` are the factors that it began with."""
        self.score(phase.index, phase.action, epoch, step, end=True)
        self.profile(phase, before)
        weights = weights_of(self.plan.groups, self.metrics)
        found = measures(self.plan, history_of(self.metrics), phase.index, weights)
        if found:
            self.write([{"phase": phase.index, "action": phase.action, "measures": found}])
        self.look_at_forgotten(phase)
        told = guard.figures(phase)
        if told:
            self.write([{"phase": phase.index, "action": phase.action, "guard": told}])
        self.show(phase.title)


def _base_name(flags: Mapping[str, Any]) -> str:
    """The base as its card calls it: a name of the hub as it is, of a file or folder the last part, or the model's name."""
    path = str(flags.get("checkpoint") or flags.get("model") or "")
    return path if path.startswith(PREFIX) and not Path(path.removeprefix(PREFIX)).exists() else Path(path).name


def factors(model: nn.Module) -> Factors:
    """(A, scale B) of every adapter, detached."""
    found = {name: (layer.scale, *layer.factors()) for name, layer in lora.adapters(model).items()}
    return {name: (a.detach().clone(), (scale * b).detach().clone()) for name, (scale, a, b) in found.items()}


def moved(before: Factors, after: Factors) -> dict[str, float]:
    """Frobenius norm, per block, of the change of the weight updates B A, from r x r products alone."""
    squares: dict[str, float] = {}
    for name, (a1, b1) in after.items():
        a0, b0 = before[name]
        a, b = torch.cat([a1, a0]).double(), torch.cat([b1, -b0], dim=1).double()
        square = ((b.T @ b) * (a @ a.T)).sum().item()
        squares[block_of(name)] = squares.get(block_of(name), 0.0) + square
    return {name: max(0.0, square) ** 0.5 for name, square in squares.items()}
