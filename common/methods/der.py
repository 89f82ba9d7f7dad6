"""DER: the old model's logits on old data are matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.errors import UserError
from common.knobs import knob
from common.methods._base import Step
from common.methods._continual import Matched


class DER(Matched):
    """L(target) [wrong labels when forgetting] + logit_weight mean (o(x_keep) - o_teacher(x_keep))^2.

    o_teacher is what the model before the phase says (`teacher` "pretrained": before the first phase), so that what
    earlier phases changed is not pulled back. With `teacher` "stored" it is, as in the paper, what the model said of the
    item when the item entered the memory, without augmentation. No rehearsal loss (that is DER++).

    Source: Buzzega et al., NeurIPS 2020, arXiv:2004.07211, eq. 5. As a baseline of GS-LoRA, arXiv:2501.09705,
    lambda is 0.01, but there the squared norm is of embeddings and summed over the batch:
    `published_embeddings` does that.
    """

    needs = "keep, teacher, memory on request"
    checked = "the authors' code"

    @dataclass
    class Config(Matched.Config):
        teacher: str = knob(
            "phase",
            "match the logits of the model before this phase, or (published by GS-LoRA) before the first one, or those "
            "that an item had when it entered the memory (the paper; needs --exemplars)",
            ["phase", "pretrained", "stored"],
        )
        logit_weight: float = knob(0.5, "weight of the squared error; alpha in the paper")
        published_embeddings: bool = knob(False, "match embeddings, summed over the batch, as GS-LoRA's baseline does")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.teaches = config.teacher != "stored"
        if config.teacher == "stored" and (not config.exemplars or config.published_embeddings or not domain.exclusive):
            raise UserError(
                "`--teacher stored` needs a memory of whole pictures and their logits: add --exemplars 200, and leave "
                "--published-embeddings, detection and segmentation to --teacher phase."
            )

    def distance(self, step: Step, keep: Prediction) -> Tensor:
        if not self.teaches:
            assert self.memory is not None, "`__init__` refuses a config without one"
            wanted = self.memory.stored(self.domain.item_names(step.keep), keep.labels.tolist()).to(keep.scores)
            error = F.mse_loss(keep.scores, wanted)
            return self.config.logit_weight * step.log("logits", error)
        (teacher,) = self.taught([step.keep])
        if self.config.published_embeddings:
            error = F.mse_loss(keep.embedding, teacher.embedding, reduction="sum")
        else:
            error = F.mse_loss(keep.scores, teacher.scores, reduction="sum") / max(1, keep.scores.numel())
        return self.config.logit_weight * step.log("logits", error)


METHOD = DER
