"""What the methods of continual learning share: wrong labels for forgetting, rehearsal, a memory, a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.errors import UserError
from common.exemplars import STRATEGIES, ExemplarConfig
from common.knobs import knob
from common.methods._base import Method, Step, Taught
from common.methods._memory import Memory
from common.methods._relabel import cross_entropy, relabelled
from common.plan import Phase
from common.streams import Chosen, Stream
from common.teacher import Teacher


class Continual(Taught):
    """learn:  L(target) + keep_weight L(keep) + retention
    forget: CE(target with wrong labels) + keep_weight L(keep) + retention

    Subclasses add `retention`. These are the baselines of GS-LoRA (arXiv:2501.09705, section 5): a method of
    continual learning takes in the forget set as new data whose labels are wrong.
    """

    trains = "backbone"
    saved: tuple[str, ...] = ("memory", "chosen")
    memorises = False  # whether keep batches come from a memory even when `exemplars` is 0

    @dataclass
    class Config(Method.Config):
        trains: str = knob("backbone", "what moves (published: all but the classifier)", ["adapter", "backbone", "all"])
        rehearse: bool = knob(True, "train on the keep set too (the * of the tables)")
        keep_weight: float = knob(1.0, "weight of the rehearsal loss")
        new_rows_only: bool = knob(
            False,
            "learn phases: softmax over the classes being learned only, so that new images do not push "
            "the old logits down (LibContinual and PyCIL, without old data)",
        )
        exemplars: int = knob(0, "remember only so many keep items per class; 0 draws from all of them", least=0)
        exemplars_per: str = knob("class", "what `--exemplars` counts", ["class", "total"])
        exemplar_strategy: str = knob("herding", "how they are chosen", STRATEGIES)
        teacher: str = knob(
            "phase",
            "distil from the model before this phase, or (published) before the first one",
            ["phase", "pretrained"],
        )
        published_relabel: bool = knob(False, "wrong labels modulo the number of forgotten classes, as published")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        if config.new_rows_only and not domain.plain_loss:
            raise UserError("`--new-rows-only` is for models that train with plain cross-entropy; leave it out here.")
        self._memory: Memory | None = None
        self.chosen: tuple[int, ...] = ()

    # ---- the loss ----------------------------------------------------------------------------------------

    def loss(self, step: Step) -> Tensor:
        if not self.reads_keep(step.phase):
            step.keep = None
        return super().loss(step)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        loss = self.acquire(step, target)
        if self.config.rehearse and keep is not None:
            loss = loss + self.config.keep_weight * step.log("keep", keep.loss)
        retained = self.retention(step, target, keep)
        return loss if retained is None else loss + retained

    def acquire(self, step: Step, target: Prediction) -> Tensor:
        """The supervised loss of a learn phase, cross-entropy with wrong labels in a forget phase."""
        if step.phase.action == "learn":
            rows = self.domain.classes.rows(step.phase.target) if self.config.new_rows_only else []
            return step.log("target", among(target, rows) if rows else target.loss)
        labels = relabelled(self.domain, step.phase, target.labels, self.config.published_relabel)
        return step.log("relabelled", cross_entropy(target.scores, labels))

    def retention(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor | None:
        """What the method adds so that old classes survive; None adds nothing."""
        return None

    def reads_keep(self, phase: Phase) -> bool:
        """Whether keep batches enter the loss."""
        return self.config.rehearse

    # ---- phases ------------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        if self.teaches and (self.teacher is None or self.config.teacher == "phase"):
            self.teacher = Teacher(self.model)
        if self.memory is not None and phase.keep:
            strangers = [c for c in phase.keep if c not in self.memory.exemplars.store]
            if strangers:
                self.memory.learn(self.model, strangers)
            self.chosen = self.memory.positions(phase.keep)

    def end_phase(self, phase: Phase) -> None:
        if self.memory is None:
            return
        if phase.action == "learn":
            self.memory.learn(self.model, phase.target)
        else:
            self.memory.forget(phase.target)

    def stream(self, phase: Phase, role: str, stream: Stream) -> Stream:
        if role != "keep" or not self.chosen:
            return stream
        return Chosen(stream.seed, stream.batch_size, stream.start, stream.rank, stream.world, self.chosen)

    def epoch_items(self, phase: Phase) -> int:
        """The keep set, unless only a memory of it or nothing of it is used: then the target set."""
        if self.memory is not None or not self.reads_keep(phase) or getattr(self.config, "published_epochs", False):
            return self.domain.size(phase.target, train=True)
        return super().epoch_items(phase)

    @property
    def memory(self) -> Memory | None:
        """The memory of old items, where one is wanted."""
        count = self.config.exemplars
        if self._memory is None and (count or self.memorises):
            sizes = ExemplarConfig(count or 20, self.config.exemplars_per, self.config.exemplar_strategy)
            self._memory = Memory(sizes, self.domain, self.train_config.seed, self.train_config.batch_size)
        return self._memory


class Matched(Continual):
    """Continual + a weighted distance between the answers on the keep batch and a teacher's; no rehearsal by itself."""

    teaches = True

    @dataclass
    class Config(Continual.Config):
        rehearse: bool = knob(False, "train on the keep labels too")
        published_epochs: bool = knob(False, "an epoch passes over the classes that a phase trains, as published")

    def reads_keep(self, phase: Phase) -> bool:
        return True

    def retention(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor | None:
        return None if keep is None else self.distance(step, keep)

    def distance(self, step: Step, keep: Prediction) -> Tensor:
        """Scalar, times its weight."""
        raise AssertionError("a subclass defines a distance")


def among(prediction: Prediction, rows: list[int]) -> Tensor:
    """Mean cross-entropy of the softmax over `rows` alone; items of other classes do not count. Scalar, in nats."""
    chosen = torch.tensor(rows, device=prediction.labels.device)
    own = prediction.labels[:, None] == chosen  # [N, R]
    known = own.any(1)
    return cross_entropy(prediction.scores[known][:, chosen], own[known].float().argmax(1))


def old_rows(domain: Domain, phase: Phase, scores: Tensor) -> Tensor:
    """Indices of the logits of classes known before a learn phase: not its own, nor those of later phases."""
    new = set(domain.classes.rows((*phase.target, *phase.unknown)))
    return torch.tensor([r for r in range(scores.shape[1]) if r not in new], device=scores.device)
