"""DER: the old model's logits on old data are matched."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.domain import Prediction
from common.knobs import knob
from common.methods._base import Step
from common.methods._continual import Continual
from common.plan import Phase


class DER(Continual):
    """L(target) [wrong labels when forgetting] + logit_weight mean (o(x_keep) - o_teacher(x_keep))^2.

    The paper stores the logits that a buffered item had when it entered the buffer; here the model before the phase
    gives them anew (`teacher` "pretrained": the model before the first phase), so that what earlier phases changed
    in them is not pulled back. No rehearsal loss (that is DER++).

    Source: Buzzega et al., NeurIPS 2020, arXiv:2004.07211, eq. 5. As a baseline of GS-LoRA, arXiv:2501.09705,
    lambda is 0.01, but there the squared norm is of embeddings and summed over the batch:
    `published_embeddings` does that.
    """

    teaches = True

    @dataclass
    class Config(Continual.Config):
        rehearse: bool = knob(False, "train on the keep labels too")
        logit_weight: float = knob(0.5, "weight of the squared error; alpha in the paper")
        published_epochs: bool = knob(False, "an epoch passes over the classes that a phase trains, as published")
        published_embeddings: bool = knob(False, "match embeddings, summed over the batch, as GS-LoRA's baseline does")

    def reads_keep(self, phase: Phase) -> bool:
        return True

    def retention(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor | None:
        if keep is None:
            return None
        (teacher,) = self.taught([step.keep])
        if self.config.published_embeddings:
            error = F.mse_loss(keep.embedding, teacher.embedding, reduction="sum")
        else:
            error = F.mse_loss(keep.scores, teacher.scores, reduction="sum") / max(1, keep.scores.numel())
        return self.config.logit_weight * step.log("logits", error)


METHOD = DER
