"""AmnesiacDER++: DER++ whose phases, and their part of the memory, can be taken out again."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.methods._amnesiac import Amnesia, AmnesiacConfig
from common.methods.der_pp import DERpp


class AmnesiacDERpp(Amnesia, DERpp):
    """learn: DER++ from a memory; forget: the update is subtracted and the classes leave the memory.

    Source: CLArena, `AmnesiacDERpp`; buffer of 200, factors 0.5 and 0.5 there.
    """

    @dataclass
    class Config(AmnesiacConfig, DERpp.Config):
        trains: str = field(default="all", metadata={"help": "what moves", "choices": ["adapter", "backbone", "all"]})
        exemplars: int = field(default=200, metadata={"help": "size of the memory; 0 draws from all keep items"})
        exemplars_per: str = field(
            default="total", metadata={"help": "what `--exemplars` counts", "choices": ["class", "total"]}
        )
        exemplar_strategy: str = field(default="reservoir", metadata={"help": "how they are chosen"})


METHOD = AmnesiacDERpp
