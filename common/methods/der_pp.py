"""DER++: DER plus the supervised loss on old data."""

from __future__ import annotations

from dataclasses import dataclass

from common.knobs import knob
from common.methods.der import DER


class DERpp(DER):
    """DER + keep_weight L(keep).

    The paper draws a second buffer batch for the second term; here both are on the step's keep batch.

    Source: Buzzega et al., NeurIPS 2020, arXiv:2004.07211, eq. 6; alpha = beta = 0.5 as in CLArena. As a
    baseline of GS-LoRA, arXiv:2501.09705: 0.005 / 0.005 (faces, four phases), 0.01 / 0.5 (ImageNet100).
    """

    needs = "keep, teacher, memory on request"
    checked = "the authors' code"

    @dataclass
    class Config(DER.Config):
        rehearse: bool = knob(True, "train on the keep labels too")
        keep_weight: float = knob(0.5, "weight of the rehearsal loss; beta in the paper")


METHOD = DERpp
