"""Amnesiac: learn as usual, record each phase's update, subtract it on request."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.methods._amnesiac import Amnesia, AmnesiacConfig
from common.methods._continual import Continual


class Amnesiac(Amnesia, Continual):
    """learn: L(target) + keep_weight L(keep), the latter with `--rehearse`; forget: the update is subtracted.

    Source: see `_amnesiac.Amnesia`. CLArena trains on the new task alone, which is the default here too.
    """

    @dataclass
    class Config(AmnesiacConfig, Continual.Config):
        trains: str = field(default="all", metadata={"help": "what moves", "choices": ["adapter", "backbone", "all"]})
        rehearse: bool = field(default=False, metadata={"help": "train on the keep set too"})


METHOD = Amnesiac
