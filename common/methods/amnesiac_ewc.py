"""AmnesiacEWC: EWC whose phases, and their importances, can be taken out again."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.methods._amnesiac import Amnesia, AmnesiacConfig
from common.methods.ewc import EWC


class AmnesiacEWC(Amnesia, EWC):
    """learn: EWC with importances measured on what each phase learned; forget: update and importance are dropped.

    One penalty term per phase is kept (they are not merged), so that one can be taken out.

    Source: CLArena, `AmnesiacEWC`; factor 5000 there, on a Fisher matrix of mean gradients without the batch size.
    """

    merge_terms = False

    @dataclass
    class Config(AmnesiacConfig, EWC.Config):
        trains: str = field(default="all", metadata={"help": "what moves", "choices": ["adapter", "backbone", "all"]})
        rehearse: bool = field(default=False, metadata={"help": "train on the keep set too"})
        importance_from: str = field(
            default="target", metadata={"help": "data that importances are measured on", "choices": ["keep", "target"]}
        )

    def unlearned(self, groups: list[str]) -> None:
        for name in list(self.penalty.terms):
            if set(name.split("+")) <= set(groups):
                self.penalty.drop(name)


METHOD = AmnesiacEWC
