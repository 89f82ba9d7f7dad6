"""Amnesiac: learn as usual, record each phase's update, subtract it on request."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from common.config import flag
from common.domain import Domain
from common.errors import UserError
from common.exemplars import STRATEGIES
from common.knobs import knob
from common.methods._base import Method
from common.methods._continual import Continual
from common.methods._records import Records
from common.methods.der import DER
from common.methods.der_pp import DERpp
from common.methods.ewc import EWC
from common.methods.lwf import LwF
from common.plan import Phase

LEARNERS: dict[str, type[Continual]] = {"none": Continual, "lwf": LwF, "ewc": EWC, "der": DER, "der_pp": DERpp}
ALONE = {
    "rehearse": False,
    "keep_weight": 1.0,
    "exemplars": 0,
    "exemplars_per": "class",
    "exemplar_strategy": "herding",
}
BUFFER = ALONE | {"exemplars": 200, "exemplars_per": "total", "exemplar_strategy": "reservoir"}
DEFAULTS = {"der": BUFFER, "der_pp": BUFFER | {"rehearse": True, "keep_weight": 0.5}}  # the others: ALONE


class Amnesiac(Method):
    """theta_t = theta_0 + sum of recorded updates, minus those taken out.

    learn: what the learner does: CE alone ("none"), LwF, EWC, DER or DER++; the update of parameters and buffers is
    recorded. forget: nothing is trained, the updates of the phase's groups are subtracted. That is exact for the
    newest phase (its start is put back bit for bit) and an approximation for earlier ones, on top of which others
    were learned. A record costs two copies of what trains: the whole model, or the adapters with `--trains adapter`.

    EWC measures importances on what each phase learned, keeps one penalty term per phase, drops the term of an
    unlearned one and takes its update out of the anchors of later ones, which would pull it back. DER and DER++ drop unlearned classes from the memory. LwF's teacher is the model at the start of
    a phase, which never knows what was unlearned before it (CLArena keeps one teacher per earlier task).

    Source: CLArena (arXiv:2507.01189 and its code, `AmnesiacCLAlgorithm`), after Graves et al., AAAI 2021,
    arXiv:2010.10981; there LwF has distillation 0.1 at T = 2, EWC a factor of 5000 on mean gradients without the
    batch size, DER and DER++ a buffer of 200. Requests name groups of the plan; a group learned together with
    another cannot leave alone.
    """

    needs = "recorded updates"
    checked = "the authors' code"
    guards = False  # what was recorded and taken out must not come back through new training
    merge_terms = False
    saved: tuple[str, ...] = ("records",)

    @dataclass
    class Config(LwF.Config, EWC.Config, DER.Config):
        learner: str = knob("none", "how phases are learned", LEARNERS)
        unlearnable_age: int = knob(
            0, "a group can be unlearned until so many learn phases followed; 0: always", least=0
        )
        disable_unlearning: bool = knob(False, "record nothing and unlearn nothing: the reference run")
        trains: str = knob("all", "what moves", ["adapter", "backbone", "all"])
        # a default of None stands for the learner's own, which `__post_init__` puts there
        rehearse: bool = knob(None, "train on the keep labels too (default: on for der_pp, else off)")
        keep_weight: float = knob(None, "weight of the rehearsal loss (default: 0.5 for der_pp, else 1)")
        exemplars: int = knob(
            None, "size of the memory; 0 draws from all keep items (default: 200 for der and der_pp, else 0)", least=0
        )
        exemplars_per: str = knob(
            None, "what `--exemplars` counts (default: total for der and der_pp, else class)", ["class", "total"]
        )
        exemplar_strategy: str = knob(
            None, "how they are chosen (default: reservoir for der and der_pp, else herding)", STRATEGIES
        )
        distil_weight: float = knob(0.1, "lwf: weight of the distillation")
        importance_from: str = knob("target", "ewc: data that importances are measured on", ["keep", "target"])

        def __post_init__(self) -> None:
            if self.learner not in LEARNERS:
                raise UserError(f"`--learner` must be one of {', '.join(LEARNERS)}, got {self.learner}.")
            for name, value in DEFAULTS.get(self.learner, ALONE).items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
            for name, learner in self.strangers().items():
                raise UserError(f"`{flag(name)}` is a flag of --learner {learner}, not of --learner {self.learner}.")
            super().__post_init__()

        def strangers(self) -> dict[str, str]:
            """The changed settings of other learners, each with the learner it belongs to."""
            own = {item.name for item in fields(LEARNERS[self.learner].Config)}
            return {
                item.name: learner
                for learner, kind in LEARNERS.items()
                for item in fields(kind.Config)
                if item.name not in own
                and not item.name.startswith("published_")  # --reference sets those of all
                and getattr(self, item.name) != type(self).__dataclass_fields__[item.name].default
            }

    def __new__(cls, config: Any, domain: Domain, model: nn.Module) -> Amnesiac:
        """An object of this class whose `super()` is the learner."""
        return super().__new__(type(cls.__name__, (cls, LEARNERS[config.learner]), {}))

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.records = Records(config.unlearnable_age)

    def steps(self, phase: Phase, planned: int) -> int:
        return 0 if phase.action == "forget" else planned

    def begin_phase(self, phase: Phase) -> None:
        if phase.action == "learn":
            super().begin_phase(phase)
            if not self.config.disable_unlearning:
                self.records.begin(self.model)
        elif not self.config.disable_unlearning:
            for record in self.records.unlearn(self.model, phase.groups):
                if isinstance(self, EWC):
                    name = "+".join(record["groups"])
                    self.penalty.shift(name, record["start"], record["end"])
                    self.penalty.drop(name)

    def end_phase(self, phase: Phase) -> None:
        if self.config.disable_unlearning:
            if phase.action == "learn":
                super().end_phase(phase)
            return
        super().end_phase(phase)
        if phase.action == "learn":
            self.records.end(self.model, phase)


METHOD = Amnesiac
