"""THE loop: every method, every plan, every domain. Read `domain.py` first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from common import (
    adapters,
    before,
    cli,
    devices,
    distributed,
    dry_run,
    launch,
    layers,
    lora,
    notes,
    precision,
    references,
    report,
    schedule,
    trainable,
)
from common.averaging import MovingAverage
from common.domain import Batch, Domain, check_items
from common.errors import Interrupted, UserError
from common.guard import Guard, GuardConfig
from common.methods._base import Position, Step
from common.objective import Objective
from common.observer import Factors, Observer, factors
from common.plan import Phase, Plan
from common.plan_file import PlanConfig
from common.progress import Progress
from common.record import METRICS, STEPS, Callback, Run, environment, open_sinks, save_tensors, write_json
from common.run_flags import parsed
from common.session import Opening, Session
from common.settings import Settings
from common.settling import Settling
from common.state import collected, read_state, take_up, taking_up
from common.stop import Stop
from common.streams import Stream, derive, seed_all
from common.timing import peak_memory


def main(session: Session, verb: str, argv: Sequence[str] | None = None) -> int:
    """What swap.py ("swap") and pretrain.py ("pretrain") of a domain run; the exit code."""
    return cli.main(lambda words: train(session, session.tidy(words), verb), argv)


def train(session: Session, argv: Sequence[str], verb: str) -> None:
    """From flags to a run folder: the domain opens model, data and plan, and `run_plan` does the rest."""
    settings = parsed(session, verb, argv)
    if launch.relaunched(settings[launch.LaunchConfig]):
        return
    opened = session.open_swap(settings) if verb == "swap" else session.open_pretrain(settings)
    run_plan(opened, settings, session.name)
    distributed.close()


def run_plan(opening: Opening, settings: Settings, name: str, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Carries out an opened run in its folder and writes report.html; the trainer, with the trained model.

    What can be refused is refused before the images are read.

    Args:
        name: of the domain.
        callbacks: called with ("steps" or "metrics", record) at every step and score.
    """
    layers.keep_freed_memory()
    plan, folder, compares = opening.plan, settings.folder(name, opening.plan), settings[PlanConfig].with_references
    settings.check_lists(plan)
    if not settings.record.overwrite:
        Run(folder).check({"domain": name, **settings.identity(plan)})
    if compares:
        references.reference_plans(plan)
    domain = opening.domain()
    trainer = Trainer(domain, plan, settings, Run(folder, settings.flags, callbacks))
    notes.tell(distributed.is_main())
    if settings.record.dry_run:
        dry_run.tell(trainer)
        return trainer
    trainer.swap()
    run, folders = trainer.run, [folder]
    if distributed.is_main() and run.path(f"model/{adapters.SWAP}").exists():
        domain.save_folder(trainer.model, run.path("model"))
    if compares:

        def carried_out(plan: Plan, place: str) -> Observer:
            plain = references.unlearns_nothing(settings, place)
            other = Trainer(domain, plan, plain, Run(run.path(place), plain.flags))
            other.swap()
            return other.observer

        references.compare(trainer.observer, carried_out)
        folders += [run.path("reference-retrain"), run.path("reference-original")]
    if distributed.is_main():
        page = report.write(folders, run.path("report.html")) if settings.record.report else None
        print(f"results in {folder}" + (f"; open {page}" if page else ""))
    return trainer


Batches = Iterator[tuple[Batch, Batch | None, Batch | None]]  # target, keep and gone


class Trainer:
    """One run: a plan carried out by a method on a domain, recorded in a folder."""

    def __init__(self, domain: Domain, plan: Plan, settings: Settings, run: Run) -> None:
        self.domain, self.plan, self.settings, self.run = domain, plan, settings, run
        config, self.lora_config = settings.train, settings.lora
        self.config = config
        self.device = devices.choose_device(config.device, distributed.local_rank())
        distributed.init(self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.format = precision.choose(config.precision, self.device)
        seed_all(config.seed)
        self.model = domain.build_model().to(self.device)
        self.base = adapters.checksum(self.model)
        self.rows = trainable.prepare(self.model, domain, plan, settings)
        domain.freeze(self.model)
        self.method = settings.method(settings.method_config, domain, self.model)
        self.method.rows, self.method.train_config = self.rows, config
        if self.method.own is not None:
            self.method.own.to(self.device)
        self.guard = Guard(settings[GuardConfig], self.method, plan, str(settings.flags.get("checkpoint") or ""))
        self.settling = Settling(config, domain, self.method, plan)
        self.objective = Objective(self.model, self.method, self.guard, self.format, self.device)
        self.wrapped: nn.Module = self.objective
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.frozen_norms = norms if lora.adapters(self.model) else []
        self.parameters = [p for p in self.method.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError(
                "nothing to train: no adapter and no head row; check --lora-position and --train-head-rows."
            )
        decay = config.average_decay
        self.average = MovingAverage(self.parameters if decay else [], decay, warm=True)
        self.optimizer = trainable.optimizer(self.parameters, self.rows, self.config)
        self.resumed: dict[str, Any] | None = None  # the optimizer's state of a run that goes on
        self.factors: Factors = {}  # the adapters at the start of the phase
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format == "fp16")
        self.observer = Observer(domain, plan, self.model, run, self.format, self.device, config, self.settling.on)
        self.done: dict[str, Any] = {"phase": 1, "step": 0, "metrics": 0, "steps": 0, "seconds": 0.0, "peak_memory": 0}
        self.done["cpu_seconds"], self.cpu = 0.0, time.process_time()
        self.pending: list[dict[str, Any]] = []
        self.stop = Stop()

    # ---- the record ---------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        known = {"domain": self.domain.name, **self.settings.identity(self.plan)}
        return {**known, "data": self.domain.describe(), "base": self.base, "world": distributed.world()}

    def _description(self) -> dict[str, Any]:
        return {
            **environment(),
            "metric": self.domain.metric,
            **{
                name: getattr(self.domain, name)
                for name in ("metric_label", "meaning", "answered", "counted", "titles")
            },
            "phases": [asdict(p) | {"title": p.title} for p in self.plan.phases],
            "precision": self.format,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "parameters": {
                "trainable": trainable.count(self.parameters, self.rows),
                "total": sum(p.numel() for p in adapters.base_parameters(self.model)),
            },
        }

    # ---- the run -----------------------------------------------------------------------------------------

    def swap(self) -> list[dict[str, Any]]:
        """Carries out the plan; returns the lines of metrics.jsonl. Continues a run found in the folder."""
        with closing(self.run):
            check_items(self.domain, self.plan, self.config.batch_size)
            identity = self._identity()
            if distributed.is_main():
                found = self.run.open(identity, self._description(), self.settings.record.overwrite)
                for name, content in self.domain.documents().items():
                    write_json(self.run.path(name), content)
                open_sinks(self.run, self.settings.record, self.run.folder.name)
            else:
                found = False
            if distributed.from_main(found):
                self._resume()
            with self.stop.listening():
                before.begin(self)
                for phase in self.plan.phases[self.done["phase"] - 1 :]:
                    self._train(phase)
            if not self.observer.exported():  # taken away or damaged since
                self.observer.export(self.config.method, self.rows, self.guard)
            if distributed.is_main() and not self.run.path("done.json").exists():
                names = ("seconds", "cpu_seconds", "peak_memory")
                write_json(self.run.path("done.json"), {n: self.done.get(n, 0) for n in names} | self.domain.saved())
            return self.observer.metrics

    def _train(self, phase: Phase) -> None:
        """One phase: loss, backward, clip, step; scores at its end."""
        per_epoch, total = self._length(phase)
        start = self.done["step"]
        self._begin(phase, start)
        if start == 0:
            self.observer.sample(phase, 0, total)
        batches = self._batches(phase, start)
        began = time.monotonic()
        saved = began
        progress = Progress(f"phase {phase.title}", total, start, show=distributed.is_main())
        for number in range(start, total):
            at = Position(phase, number, total, per_epoch)
            lr = self._set_lr(at)
            values = self._step(at, batches, lr)
            self.done["step"] = number + 1
            if distributed.is_main():  # the others never write, and so would never empty the list
                line = {"phase": phase.index, "epoch": at.epoch, "step": number, "lr": lr, **values}
                self.pending.append(line)
                self.run.tell(STEPS, line)
            progress.update(values["loss"])
            if self.settling.due(at):
                self._look(at)
            now = time.monotonic()
            self.done["seconds"] += now - began
            began = now
            if number + 1 == self.settling.end:
                break
            if self.observer.due(at):
                with self.average.applied():
                    self.observer.look(at)
                began = time.monotonic()
            if distributed.any_rank(self.stop.asked, self.device):
                progress.close()
                self._save()
                where = f"phase {phase.title}, step {number + 1} of {total}"
                raise Interrupted(f"stopped after {where}; the same command goes on from there.", self.stop.code)
            if now - saved >= self.config.save_every:
                self._save()
                saved = now
        progress.close()
        self._end(phase, self.done["step"], total, per_epoch)

    def _look(self, at: Position) -> None:
        with self.average.applied(), precision.autocast(self.format, self.device):
            self.settling.look(at)

    def _step(self, at: Position, batches: Batches, lr: float) -> dict[str, float]:
        """Forward and backward on `accumulate` pairs of batches, one optimizer step; the loss and its terms."""
        seed_all(derive(self.config.seed, "dropout", at.phase.index, at.number, distributed.rank()))
        self._train_mode()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        steps: list[Step] = []
        for part in range(self.config.accumulate):
            step = Step(at, *next(batches))
            steps.append(step)
            last = part == self.config.accumulate - 1
            with nullcontext() if last else distributed.unsynchronised(self.wrapped):
                loss = self.wrapped(step)
                self.scaler.scale(loss / self.config.accumulate).backward()
            for name, value in {"loss": loss.detach(), **step.terms}.items():
                sums[name] = sums.get(name, 0) + value.float() / self.config.accumulate
        self.scaler.unscale_(self.optimizer)
        self.method.before_step(step)
        sums["grad_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        own = sums["loss"]
        sums["loss"] = distributed.total(own) / distributed.world()
        numbers = torch.stack([own, *(value.float() for value in sums.values())]).tolist()  # the one copy to the host
        values = dict(zip(sums, numbers[1:], strict=True))
        watched = ["loss"] if self.scaler.is_enabled() else ["loss", "grad_norm"]  # fp16 gradients may overflow
        trainable.check_step({name: values[name] for name in watched}, numbers[0], steps, self.domain, self.run.folder)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(step, lr)
        self.guard.after_step(at.phase)
        self.average.update()
        return values

    def _train_mode(self) -> None:
        """Training mode, except for the running statistics of a frozen base, which belong to its weights."""
        if not self.model.training or any(norm.training for norm in self.frozen_norms):  # walking a model takes a while
            self.model.train()
            for norm in self.frozen_norms:
                norm.eval()

    # ---- pieces of a phase -------------------------------------------------------------------------------

    def _length(self, phase: Phase) -> tuple[int, int]:
        """(steps per epoch, steps of the phase)."""
        size = self.method.epoch_items(phase)
        per_epoch = -(-size // (self.config.batch_size * distributed.world() * self.config.accumulate))
        planned = self.config.length(phase.action, per_epoch, self.settling.on(phase))
        return per_epoch, self.method.steps(phase, planned)

    def _begin(self, phase: Phase, start: int) -> None:
        fresh = start == 0
        stacks = self.lora_config.lora_between_phases == "stack" or self.guard.stacks(phase)
        if fresh and phase.index > 1 and lora.adapters(self.model) and stacks:
            lora.fresh(self.model, self.lora_config, derive(self.config.seed, "lora", phase.index), stack=True)
        if fresh:
            self.model.eval()
            seed_all(derive(self.config.seed, "begin", phase.index))
            with precision.autocast(self.format, self.device):
                self.method.begin_phase(phase)
                self.guard.begin_phase(phase)
        if fresh and not self.config.carry_optimizer:
            self.optimizer = trainable.optimizer(self.parameters, self.rows, self.config)
        if self.resumed is not None and (not fresh or self.config.carry_optimizer):
            with taking_up(self.run.path("state.pt")):
                trainable.take_up(self.optimizer, self.resumed)
        self.resumed = None  # else it belongs to the phase before
        self.wrapped = distributed.wrap(self.objective, self.device, unused=not lora.adapters(self.model))
        if fresh or not self.factors:
            self.factors = factors(self.model)

    def _set_lr(self, at: Position) -> float:
        c = self.config
        peak = (c.forget_lr if at.phase.action == "forget" else 0) or c.lr
        per_epoch = at.per_epoch if c.schedule_per_epoch else 0
        lr = schedule.learning_rate(
            at.number, at.total, peak, min(c.min_lr, peak), c.schedule, round(c.warmup * at.total), per_epoch
        ) * self.settling.fading(at.number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _batches(self, phase: Phase, start: int) -> Batches:
        """Batches to train, to keep, and of what is gone where the data guard shows it, from step `start` on."""

        def stream(role: str) -> Stream:
            seed = derive(self.config.seed, "stream", phase.index, role)
            start_at = start * self.config.accumulate
            own = Stream(seed, self.config.batch_size, start_at, distributed.rank(), distributed.world())
            return self.settling.stream(phase, role, self.method.stream(phase, role, own))

        def batches(role: str, classes: Sequence[str]) -> Iterator[Batch | None]:
            return iter(self.domain.loader(classes, train=True, stream=stream(role))) if classes else repeat(None)

        gone = phase.gone if self.guard.kind(phase) == "data" else ()
        return zip(batches("target", phase.target), batches("keep", phase.keep), batches("gone", gone), strict=False)

    def _end(self, phase: Phase, steps: int, limit: int, per_epoch: int) -> None:
        before.look(self)
        self.model.eval()
        self.average.settle()
        with precision.autocast(self.format, self.device):
            self.method.end_phase(phase)
            self.guard.end_phase(phase)
        trainable.check_finite(self.model, phase.title)
        self.observer.write(self.settling.figures(phase, steps, limit))
        self.observer.sample(phase, steps, limit)
        self.observer.end_phase(phase, steps // per_epoch, steps, self.factors, self.guard)
        self.done.update(phase=phase.index + 1, step=0)
        self.observer.export(self.config.method, self.rows, self.guard, phase.index)
        self._save()

    # ---- stop and resume ---------------------------------------------------------------------------------

    def _save(self) -> None:
        """state.pt: everything that the rest of the run depends on, at a step boundary."""
        if not distributed.is_main():
            return
        self.run.append(STEPS, self.pending)
        self.done["steps"] += len(self.pending)
        self.done["metrics"] = len(self.observer.metrics)
        since, self.cpu = self.cpu, time.process_time()
        self.done["cpu_seconds"] = self.done.get("cpu_seconds", 0.0) + self.cpu - since  # scoring included
        self.done["peak_memory"] = max(self.done["peak_memory"], peak_memory(self.device))
        self.pending = []
        save_tensors(self.run.path("state.pt"), collected(self))

    def _resume(self) -> None:
        """Takes up the last saved state, or starts again where none was saved yet."""
        path = self.run.path("state.pt")
        state = distributed.from_main(read_state(path) if distributed.is_main() else None)
        if state is None:
            if self.run.path("done.json").exists():
                raise UserError(f"{path} of a finished run is gone: add --overwrite to train anew.")
            self._cut(0, 0)
            return
        self.resumed = take_up(self, state, path)
        self._cut(self.done["metrics"], self.done["steps"])
        if distributed.is_main() and self.done["phase"] <= len(self.plan.phases):
            print(f"continuing {self.run.folder} at phase {self.done['phase']}, step {self.done['step']}", flush=True)

    def _cut(self, metrics: int, steps: int) -> None:
        """Drops the lines that were written after the saved state."""
        if distributed.is_main():
            self.run.truncate(STEPS, steps)
            self.observer.metrics = self.run.truncate(METRICS, metrics)
        self.observer.metrics = distributed.from_main(self.observer.metrics)
