"""The base class of methods. A method returns a loss; the loop owns backward, clipping, precision, step, DDP and records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common import distributed
from common.domain import Batch, Domain, Prediction
from common.errors import UserError
from common.knobs import Checked
from common.plan import Phase
from common.rows import TrainedRows
from common.state import Saved
from common.streams import Ordered, Stream
from common.teacher import Teacher, restored
from common.train_config import TrainConfig


@dataclass(frozen=True)
class Position:
    """Where the loop stands: in which phase, and at which of its steps.

    number: 0-based step of the phase; total: steps of the phase; per_epoch: steps of one epoch.
    """

    phase: Phase
    number: int
    total: int
    per_epoch: int = 1

    @property
    def epoch(self) -> int:
        """0-based epoch of the phase."""
        return self.number // self.per_epoch

    @property
    def ends_epoch(self) -> bool:
        """Whether this is the last step of its epoch, or of the phase."""
        return (self.number + 1) % self.per_epoch == 0 or self.number + 1 == self.total


class Step:
    """One step of the loop, as a method sees it.

    at:     the phase and the step's place in it.
    target: a batch of the classes that the phase trains.
    keep:   a batch of the classes that it must not damage; None where there are none.
    gone:   a batch of what earlier phases have forgotten, for the data guard; None where it has none.
    """

    def __init__(self, at: Position, target: Batch, keep: Batch | None, gone: Batch | None = None) -> None:
        self.at, self.phase, self.target, self.keep, self.gone = at, at.phase, target, keep, gone
        self.terms: dict[str, Tensor] = {}

    def batches(self) -> list[Batch]:
        """Those that there are."""
        return [batch for batch in (self.target, self.keep, self.gone) if batch is not None]

    def log(self, name: str, value: Tensor) -> Tensor:
        """Records a named term of the loss for the curves and gives it back."""
        self.terms[name] = value.detach()
        return value


class Method(Saved):
    """A way to learn and forget. Subclasses override `swap_loss`, or `loss` to choose the forward passes.

    trains: what moves, unless the method's Config has a field of that name: "adapter" (adapters and new head
        rows on a frozen model), "backbone" (all but the head, and its new rows) or "all".
    saved: attributes that a resumed run needs, see `Saved`.
    guards: whether later phases may be shown what earlier ones have forgotten (see `common.guard`).
    settles: whether a phase may end before its last step where no length is given (see `common.settling`).
    needs, checked: for `python -m common.methods`: what a forget phase needs besides the forget set, and which published
        code the equations were compared with ("": none). A subclass says its own; these two are not passed on.
    """

    needs, checked = "keep", ""
    trains = "adapter"
    guards = settles = True

    @dataclass
    class Config(Checked):
        """Knobs of the method; each becomes a flag."""

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        self.config, self.domain, self.model = config, domain, model
        self.rows: TrainedRows | None = None  # set by the loop when head rows train
        self.train_config: TrainConfig  # set by the loop (seed, batch_size, epochs, ...)
        self.own: nn.Module | None = None  # parameters that the method adds and trains; saved and synchronised

    @classmethod
    def scope(cls, config: Any) -> str:
        """What trains under this config: "adapter", "backbone" or "all"."""
        return getattr(config, "trains", cls.trains)

    def parameters(self) -> Iterable[nn.Parameter]:
        """What trains. Default: whatever requires a gradient, in the model and of the method's own."""
        modules = [self.model] + ([] if self.own is None else [self.own])
        return (p for module in modules for p in module.parameters() if p.requires_grad)

    def epoch_items(self, phase: Phase) -> int:
        """Number of items in one epoch. Default: the keep set, or the target set where nothing is kept."""
        return self.domain.size(phase.keep or phase.target, train=True)

    def steps(self, phase: Phase, planned: int) -> int:
        """Steps of a phase; 0 for a method that changes the weights in `begin_phase` and trains nothing."""
        return planned

    def stream(self, phase: Phase, role: str, stream: Stream) -> Stream:
        """The stream that draws "target" or "keep" items; a method with a small memory draws from that."""
        return stream

    def pass_over(
        self, classes: Sequence[str], batch_size: int = 0, items: tuple[int, ...] | None = None
    ) -> Iterable[Batch]:
        """This rank's share of the training items of `classes`, once, in order, without augmentation.

        items: positions in the loader of these classes, to pass over some of them only.
        """
        size = batch_size or self.train_config.batch_size
        stream = Ordered(self.train_config.seed, size, 0, distributed.rank(), distributed.world(), items)
        return self.domain.loader(classes, train=True, stream=stream)

    def begin_phase(self, phase: Phase) -> None:
        """Before the first step of a phase: take snapshots, measure importances."""

    def loss(self, step: Step) -> Tensor:
        """The scalar to be minimised at this step."""
        batches = [step.target] if step.keep is None else [step.target, step.keep]
        target, *rest = self.domain.predict_together(self.model, batches)
        return self.swap_loss(step, target, rest[0] if rest else None)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        """The same, given one forward pass on the target and on the keep batch."""
        raise AssertionError("a method defines `loss` or `swap_loss`")

    def before_step(self, step: Step) -> None:
        """Before the optimizer moves, gradients ready (averaged, unscaled, not yet clipped): masks, importances."""

    def after_step(self, step: Step, lr: float) -> None:
        """After the optimizer moved: projections, proximal steps, moving averages."""

    def end_phase(self, phase: Phase) -> None:
        """After the last step of a phase, before scores are taken."""


class Taught(Method):
    """A method with a teacher, the model as it once was, where its subclass wants one."""

    teaches = False  # whether `self.teacher` is wanted
    saved: tuple[str, ...] = ("teacher",)

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.teacher: Teacher | None = None

    def taught(self, batches: Sequence[Batch]) -> list[Prediction]:
        """The teacher's predictions for batches of this step."""
        assert self.teacher is not None, "`begin_phase` makes the teacher"
        return self.teacher.predict(self.domain, batches)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher = restored(self.model, state["teacher"])


def for_phase(values: str, default: float, phase: Phase, flag: str) -> float:
    """The value of a phase: its entry in a comma separated list, or `default` where the list is empty.

    Raises:
        UserError: no number, or fewer entries than phases.
    """
    if not values:
        return default
    try:
        found = [float(v) for v in values.split(",")]
        if not all(0 <= v < math.inf for v in found):
            raise ValueError
        return found[phase.index - 1]
    except (ValueError, IndexError):
        raise UserError(f"`{flag}` takes one number per phase, comma separated, got {values!r}.") from None
