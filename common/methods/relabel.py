"""Random relabelling: the forget set is learned with wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._relabel import cross_entropy, relabelled
from common.methods._unlearning import Unlearning


class Relabel(Unlearning):
    """forget: CE(target with labels drawn anew from the kept classes) + keep_weight L(keep).

    On detection and segmentation the wrong labels act on the class scores of the annotated items, not on
    their boxes or masks.

    Source: Golatkar et al., CVPR 2020, arXiv:1911.04933, section 5 ("random labels").
    """

    @dataclass
    class Config(Unlearning.Config):
        published_relabel: bool = knob(False, "wrong labels modulo the number of forgotten classes (GS-LoRA's code)")

    def forget_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        labels = relabelled(self.domain, step.phase, target.labels, self.config.published_relabel)
        return step.log("relabelled", cross_entropy(target.scores, labels)) + self.kept(step, keep)


METHOD = Relabel
