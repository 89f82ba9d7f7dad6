"""AmnesiacLwF: LwF whose phases can be subtracted again."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.methods._amnesiac import Amnesia, AmnesiacConfig
from common.methods.lwf import LwF


class AmnesiacLwF(Amnesia, LwF):
    """learn: LwF without old data; forget: the update is subtracted.

    The teacher of a phase is the model at its start, so that it never knows what was unlearned before; CLArena
    keeps one teacher per earlier task (memory grows) and its later ones still contain an unlearned task.

    Source: CLArena, `AmnesiacLwF`; distillation 0.1 at T = 2 there.
    """

    @dataclass
    class Config(AmnesiacConfig, LwF.Config):
        trains: str = field(default="all", metadata={"help": "what moves", "choices": ["adapter", "backbone", "all"]})
        rehearse: bool = field(default=False, metadata={"help": "train on the keep set too"})
        distil_weight: float = field(default=0.1, metadata={"help": "weight of the distillation"})


METHOD = AmnesiacLwF
