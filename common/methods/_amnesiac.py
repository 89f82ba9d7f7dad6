"""Makes a continual-learning method unlearn by subtraction: what CLArena calls its Amnesiac algorithms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from common.domain import Domain
from common.errors import UserError
from common.methods._records import Records
from common.plan import Phase


@dataclass
class AmnesiacConfig:
    """Knobs of unlearning by subtraction, to be inherited beside the learner's own Config."""

    unlearnable_age: int = field(
        default=0, metadata={"help": "a group can be unlearned until so many learn phases followed; 0 for ever"}
    )
    disable_unlearning: bool = field(
        default=False, metadata={"help": "record nothing and unlearn nothing: the reference run"}
    )

    def __post_init__(self) -> None:
        if self.unlearnable_age < 0:
            raise UserError(f"`--unlearnable-age` must not be negative, got {self.unlearnable_age}.")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


class Amnesia:
    """To be inherited before a learner: theta_t = theta_0 + sum of recorded updates, minus those taken out.

    A learn phase is the learner's own; its update (parameters and buffers) is recorded. A forget phase trains
    nothing: the updates of its groups are subtracted. That is exact for the newest phase (its start is put back
    bit for bit) and an approximation for earlier ones, on top of which others were learned. A record costs two
    copies of what trains: the whole model, or the adapters alone with `--trains adapter`.

    Source: CLArena (arXiv:2507.01189 and its code, `AmnesiacCLAlgorithm`), after Graves et al., AAAI 2021,
    arXiv:2010.10981. Requests name groups of the plan; a group learned together with another cannot leave alone.
    """

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
            self.unlearned(self.records.unlearn(self.model, phase.groups))

    def end_phase(self, phase: Phase) -> None:
        if phase.action == "learn" or not self.config.disable_unlearning:
            super().end_phase(phase)
        if self.config.disable_unlearning:
            return
        if phase.action == "learn":
            self.records.end(self.model, phase)

    def unlearned(self, groups: list[str]) -> None:
        """Drops what the learner itself remembers of these groups."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "records": self.records.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.records.load_state_dict(state["records"])
