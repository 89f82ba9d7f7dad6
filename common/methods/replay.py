"""Replay: learn on the target batch or push it beyond a bound, while the keep batch is trained as usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from common.domain import Domain, Prediction, Read
from common.knobs import knob
from common.losses import bounded_forgetting
from common.methods._base import Method, Step, for_phase
from common.methods._spare import WORTH, can_spare, predict_spared, within
from common.plan import Phase


class Replay(Method):
    """learn:  learn_weight L(target) + keep_weight L(keep)
    forget: L(keep) + forget_weight relu(bound - L(target))

    Source: Knowledge Swapping, arXiv:2502.08075, without its sparsity term. There `keep_weight` is 0.2 on
    images (beta) and 1 elsewhere, `learn_weight` 1 and 0.9, `forget_weight` 0.2 (beta again).
    """

    checked = "the authors' code"

    @dataclass
    class Config(Method.Config):
        learn_weight: float = knob(1.0, "weight of the target loss in a learn phase")
        keep_weight: float = knob(1.0, "weight of the keep loss in a learn phase")
        forget_weight: float = knob(0.2, "weight of the bounded forget loss")
        forget_weights: str = knob(
            "", "one per phase, comma separated, instead of that (continual forgetting)", per_phase=True
        )
        bound: float = knob(10.0, "loss (nats) at which an item counts as forgotten; BND in the paper", above=0)
        bound_per_item: bool = knob(True, "bound the loss of every item, not their mean (published: the mean)")

    saved: tuple[str, ...] = ("active",)
    spares = True  # whether target items count through their bounded loss alone; a subclass says so itself
    reads_kept_items = False  # whether the losses of kept items are read

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.active = 1.0  # share of the last step's target items that had a gradient
        self._sparing: tuple[int, bool] | None = None  # phase, and whether the model can be spared in it

    def loss(self, step: Step) -> Tensor:
        by_item, read = self._by_item(step), self._read(step)
        spares = by_item and self._can_spare(step.phase)
        spared = spares and step.keep is not None and self.active < WORTH
        if not spared:
            batches = [step.target] if step.keep is None else [step.target, step.keep]
            target, *rest = self.domain.predict_together(self.model, batches, read[: len(batches)])
        else:
            target, *rest = predict_spared(self.domain, self.model, step.target, step.keep, self.config.bound, read)
        near = within(target, self.config.bound) if spares else None
        if near is not None and len(near):
            self.active = near.float().mean().item()
            step.log("spared", target.loss.new_tensor((1 - self.active) * spared))  # share without a backward pass
        return self.swap_loss(step, target, rest[0] if rest else None)

    def _can_spare(self, phase: Phase) -> bool:
        """Looked up once in a phase."""
        if self._sparing is None or self._sparing[0] != phase.index:
            self._sparing = phase.index, can_spare(self.model)
        return self._sparing[1]

    def _states(self) -> bool:
        """Whether the class itself says what it reads."""
        return bool(vars(type(self)).get("spares"))

    def _by_item(self, step: Step) -> bool:
        """Whether target items count through their bounded loss alone."""
        return self._states() and step.phase.action == "forget" and self.config.bound_per_item

    def _read(self, step: Step) -> list[Read]:
        """Which losses of the target and of the keep batch are read."""
        if not self._states():
            return ["both", "both"]
        target: Read = "items" if self._by_item(step) else "loss" if step.phase.action == "learn" else "both"
        return [target, "both" if self.reads_kept_items else "loss"]

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        kept = 0.0 if keep is None else step.log("keep", keep.loss)
        step.log("target", target.loss)
        if step.phase.action == "learn":
            return self.config.learn_weight * target.loss + self.config.keep_weight * kept
        forget = bounded_forgetting(target, self.config.bound, self.config.bound_per_item)
        weight = for_phase(self.config.forget_weights, self.config.forget_weight, step.phase, "--forget-weights")
        return kept + weight * step.log("bounded", forget)


METHOD = Replay
