"""FDR: a penalty on the change of the outputs on old data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._continual import Matched


class FDR(Matched):
    """L(target) [wrong labels when forgetting] + output_weight mean_i || p(x_i) - p_teacher(x_i) ||_2 on keep items.

    p are the class probabilities (the paper's L2 function space of the network's outputs); `outputs` "logits"
    compares logits, as GS-LoRA's baseline does. Its 50 (40 on ImageNet100) is for logits at scale 64.

    Source: Benjamin, Rolnick and Kording, ICLR 2019, arXiv:1805.08289, eq. 5; GS-LoRA, arXiv:2501.09705.
    """

    needs = "keep, teacher"
    checked = "the code of GS-LoRA, where it is a baseline"

    @dataclass
    class Config(Matched.Config):
        output_weight: float = knob(1.0, "weight of the distance; lambda in the paper")
        outputs: str = knob("probabilities", "what is compared", ["probabilities", "logits"])

    def distance(self, step: Step, keep: Prediction) -> Tensor:
        (teacher,) = self.taught([step.keep])
        a, b = keep.scores, teacher.scores
        if self.config.outputs == "probabilities":
            a, b = a.softmax(-1), b.softmax(-1)
        square = (a - b).square().sum(-1)
        # the root's slope is infinite at 0, where student and teacher agree: no pull there
        length = torch.where(square > 0, torch.where(square > 0, square, torch.ones_like(square)).sqrt(), square)
        return self.config.output_weight * step.log("outputs", length.sum() / max(1, len(length)))


METHOD = FDR
