"""AmnesiacDER: DER whose phases, and their part of the memory, can be taken out again."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.methods._amnesiac import Amnesia, AmnesiacConfig
from common.methods.der import DER


class AmnesiacDER(Amnesia, DER):
    """learn: DER from a memory; forget: the update is subtracted and the classes leave the memory.

    Source: CLArena, `AmnesiacDER`; buffer of 200, factor 1.0 there.
    """

    @dataclass
    class Config(AmnesiacConfig, DER.Config):
        trains: str = field(default="all", metadata={"help": "what moves", "choices": ["adapter", "backbone", "all"]})
        exemplars: int = field(default=200, metadata={"help": "size of the memory; 0 draws from all keep items"})
        exemplars_per: str = field(
            default="total", metadata={"help": "what `--exemplars` counts", "choices": ["class", "total"]}
        )
        exemplar_strategy: str = field(default="reservoir", metadata={"help": "how they are chosen"})


METHOD = AmnesiacDER
