"""SCRUB-S: SCRUB with a pull to the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass

from common.knobs import knob
from common.methods.scrub import SCRUB


class SCRUBS(SCRUB):
    """SCRUB with smoothing above 0 and several rounds, between which the averaged weights are renewed.

    Source: as SCRUB; the two differ in nothing else (so the author of GS-LoRA, whose baseline this is, says).
    Published smoothing: 0.1 (four forget phases), 0.05 (one, and ImageNet100).
    """

    needs = "keep, teacher"
    checked = "the code of GS-LoRA, where it is a baseline"

    @dataclass
    class Config(SCRUB.Config):
        smoothing: float = knob(0.1, "pull to the averaged weights")
        rounds: int = knob(5, "rounds per phase (published: 10, of 10 epochs each)", least=1)


METHOD = SCRUBS
