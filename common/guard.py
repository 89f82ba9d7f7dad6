"""Guards: what earlier phases of a plan have forgotten stays forgotten while later phases train.

data:     the forgotten classes' training items are shown as a third batch, and must be answered as they were when the
          phase began. The images are kept as long as the plan runs.
subspace: no image is kept, only the directions of their inputs at the adapted layers that those of kept classes have
          less of; later adapters do not react to these directions. See `common.subspace`. The directions lie beside the adapter, and a run that starts from
          it holds its own adapters the same way.
none:     nothing is kept and nothing is done, as published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed, lora, subspace
from common.domain import Batch
from common.errors import UserError
from common.knobs import Checked, knob
from common.losses import bounded_forgetting, masked_kl
from common.methods._base import Method, Step
from common.plan import Phase, Plan
from common.streams import derive
from common.teacher import Teacher, restored

BOUND = 10.0  # nats, for methods that have no `bound`
KINDS = ("auto", "data", "subspace", "none")


@dataclass
class GuardConfig(Checked):
    """What keeps forgotten classes forgotten."""

    guard: str = knob(
        "auto",
        "what later phases do about forgotten classes: train against their images (data), leave the directions of "
        "their inputs alone (subspace, adapters only), nothing (none, as published); auto: data where the method "
        "allows, and the directions that the base model's run has left",
        KINDS,
    )
    guard_weight: float = knob(1.0, "weight of the data guard's loss", least=0)
    guard_energy: float = knob(
        0.95, "share of the inputs' energy that the subspace guard's directions hold", above=0, most=1
    )


class Guard:
    """The guard of one run. The loop calls it at the beginning and end of phases, in the loss and after steps.

    teacher: the model as it was when the phase began, where the data guard needs it.
    spaces:  what the subspace guard has taken so far.
    earlier: what the runs that the base model comes from have left; of no class that the plan learns again.
    """

    def __init__(self, config: GuardConfig, method: Method, plan: Plan, base: str = "") -> None:
        self.config, self.method, self.domain, self.model = config, method, method.domain, method.model
        self.teacher: Teacher | None = None
        self.spaces: list[subspace.Space] = []
        self.earlier: list[subspace.Space] = []
        if plan.gone and config.guard in ("auto", "subspace") and (layers := lora.adapters(self.model)):
            touched = {c for classes in plan.groups.values() for c in classes}
            found = subspace.read(Path(base) / "adapter", layers)
            self.earlier = [space for space in found if touched.isdisjoint(space["classes"])]
            if config.guard == "subspace" and not self.earlier and distributed.is_main():
                print("the base model's run has left no directions of what it forgot: nothing guards that")
        guarded = any(phase.gone for phase in plan.phases)
        if guarded and config.guard == "data" and not method.guards:
            raise UserError(
                "`--guard data` shows forgotten images again, which this method must not see; use --guard none."
            )
        if config.guard == "subspace" and not lora.adapters(self.model):
            raise UserError("`--guard subspace` holds adapters, and this method trains none; use --guard data.")

    def kind(self, phase: Phase) -> str:
        """What guards the classes that earlier phases of the plan have forgotten: "data", "subspace" or "none"."""
        if not phase.gone:
            return "none"
        if self.config.guard != "auto":
            return self.config.guard
        seen = all(self.domain.size([c], train=True) for c in phase.gone)
        return "data" if seen and self.method.guards else "none"

    def stacks(self, phase: Phase) -> bool:
        """Whether the phase needs adapters of its own, so that the update up to now stays as it is."""
        return self.kind(phase) == "subspace"

    def held(self, phase: Phase) -> list[subspace.Space]:
        """The directions that the adapters must not react to in a phase."""
        own = self.spaces if self.kind(phase) == "subspace" else []
        return [*self.earlier, *(space for space in own if set(space["classes"]) & set(phase.gone))]

    # ---- moments of a run --------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        """After the method has begun the phase."""
        self.teacher = Teacher(self.model) if self.kind(phase) == "data" and self.domain.exclusive else None
        self.after_step(phase)

    def loss(self, step: Step) -> Tensor:
        """What the data guard adds to the loss of a step that has a batch of forgotten items."""
        (gone,) = self.domain.predict_together(self.model, [step.gone], ["items"])
        if self.teacher is None:
            value = bounded_forgetting(gone, getattr(self.method.config, "bound", BOUND))
        else:
            (before,) = self.teacher.predict(self.domain, [step.gone])
            phase = step.phase
            absent = (*phase.gone, *phase.unknown, *(phase.target if phase.action == "forget" else ()))
            value = masked_kl(gone.scores, before.scores, self.domain.classes.rows(dict.fromkeys(absent)))
        return self.config.guard_weight * step.log("guard", value)

    def after_step(self, phase: Phase) -> None:
        """After the optimizer moved: the adapters lose what they have taken up of guarded directions."""
        if held := self.held(phase):
            subspace.project(self.model, held)

    def end_phase(self, phase: Phase) -> None:
        """After the method has ended the phase: takes the directions of what was forgotten."""
        self.teacher = None
        if self.config.guard == "subspace" and phase.action == "forget":
            target, others = self.method.pass_over(phase.target), self._others(phase)
            layers = subspace.directions(self.model, self.domain, target, self.config.guard_energy, others)
            self.spaces.append({"classes": list(phase.target), "layers": layers})

    def _others(self, phase: Phase) -> Iterable[Batch]:
        """As many kept items as there are forgotten ones; none where nothing is kept."""
        if not phase.keep:
            return ()
        size, wanted = (self.domain.size(classes, train=True) for classes in (phase.keep, phase.target))
        chance = torch.Generator().manual_seed(derive(self.method.train_config.seed, "others", phase.index))
        items = torch.randperm(size, generator=chance)[:wanted].tolist()
        return self.method.pass_over(phase.keep, items=tuple(sorted(items)))

    # ---- records -----------------------------------------------------------------------------------------

    def figures(self, phase: Phase) -> dict[str, Any]:
        """What the record tells of a phase's guard; {} where there was none."""
        kind = self.kind(phase)
        told: dict[str, Any] = {} if kind == "none" else {"kind": kind, "classes": list(phase.gone)}
        if self.earlier:
            told["earlier"] = [c for space in self.earlier for c in space["classes"]]
        stored = [*self.earlier, *self.spaces]
        return told | ({"stored": subspace.sizes(stored)} if stored else {})

    def save(self, folder: Path) -> None:
        """Adds the directions to an adapter folder, where some were taken."""
        if self.earlier or self.spaces:
            subspace.save([*self.earlier, *self.spaces], folder)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"teacher": None if self.teacher is None else self.teacher.state_dict(), "spaces": self.spaces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.teacher, self.spaces = restored(self.model, state["teacher"]), state["spaces"]
