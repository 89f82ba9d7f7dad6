"""What a method says. It returns a loss; the loop owns backward, clipping, precision, step, DDP and records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common.domain import Batch, Domain, Prediction
from common.plan import Phase
from common.rows import TrainedRows


class Step:
    """One step of the loop, as a method sees it.

    phase:  what is being learned or forgotten.
    epoch:  0-based epoch of the phase; `number` counts steps of the phase, `total` is their number.
    target: a batch of the classes that the phase trains.
    keep:   a batch of the classes that it must not damage; None where there are none.
    """

    def __init__(self, phase: Phase, epoch: int, number: int, total: int, target: Batch, keep: Batch | None) -> None:
        self.phase, self.epoch, self.number, self.total = phase, epoch, number, total
        self.target, self.keep = target, keep
        self.terms: dict[str, Tensor] = {}

    def log(self, name: str, value: Tensor) -> Tensor:
        """Records a named term of the loss for the curves and gives it back."""
        self.terms[name] = value.detach()
        return value


class Method:
    """A way to learn and forget. Subclasses override `swap_loss`, or `loss` to choose the forward passes.

    uses_adapter: train adapters and new head rows on a frozen model; False trains all parameters.
    """

    uses_adapter = True

    @dataclass
    class Config:
        """Knobs of the method; each becomes a flag."""

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        self.config, self.domain, self.model = config, domain, model
        self.rows: TrainedRows | None = None  # set by the loop when head rows train

    def parameters(self) -> Iterable[nn.Parameter]:
        """What trains. Default: whatever requires a gradient."""
        return (p for p in self.model.parameters() if p.requires_grad)

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

    def after_step(self, step: Step, lr: float) -> None:
        """After the optimizer moved: projections, proximal steps, moving averages."""

    def end_phase(self, phase: Phase) -> None:
        """After the last step of a phase, before scores are taken."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model and the optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
