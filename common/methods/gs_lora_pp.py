"""GS-LoRA++: GS-LoRA plus class prototypes of the pretrained model, pushed away from or held near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.averaging import MovingAverage
from common.domain import Domain, Prediction
from common.knobs import knob
from common.methods._base import Step, for_phase
from common.methods._head import training_means
from common.methods._snapshots import trained
from common.methods.gs_lora import GSLoRA
from common.plan import Phase
from common.prototypes import Prototypes, stacked


class GSLoRApp(GSLoRA):
    """The GS-LoRA loss + w_f relu(prototype_bound - KL_target) (forget phases) + w_r KL_keep, with

    KL = mean_i KL(softmax(p_{y_i}) || softmax(z_i)), softmax over the D features of the embedding z; p_c is the
    mean embedding of the training items of class c by the pretrained model (for a class learned in this run:
    by the model after that phase). Classes without an item have no prototype and no term.

    `ema_decay` above 0 keeps a running average of what trains, once per epoch from `ema_from_epoch` on, and the
    phase ends with it (published: evaluated without the adapters by mistake, never used).

    Source: Zhao et al., "Practical Continual Forgetting", arXiv:2501.09705. Published per setting: w_f 0.005
    (one phase) and 0.01 (four) on faces, 0.05 on ImageNet100, K-shot 0.5 and "0.015,0.06,0.025,0.012"; bound
    18, K-shot 50; w_r 0; forget weights "0.2,0.25,0.25,0.2". Hinge on the batch mean there; per item here.
    """

    needs = "keep, prototypes"
    checked = "the authors' code"
    saved: tuple[str, ...] = ("prototypes", "average")

    @dataclass
    class Config(GSLoRA.Config):
        prototype_forget_weight: float = knob(0.01, "push from old prototypes; w_f")
        prototype_forget_weights: str = knob("", "one per phase, comma separated, instead of that", per_phase=True)
        prototype_keep_weight: float = knob(0.0, "pull to prototypes of kept classes; w_r")
        prototype_bound: float = knob(18.0, "divergence (nats) at which the push stops")
        ema_decay: float = knob(0.0, "running average of what trains; 0 is off (0.9)", least=0, below=1)
        ema_from_epoch: int = knob(30, "first epoch of a phase that is averaged")
        published_prototypes: bool = knob(False, "take all prototypes anew from the present model, before each phase")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.prototypes: Prototypes = {}
        self.average = MovingAverage(trained(model).values(), config.ema_decay)

    # ---- prototypes --------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        known = [*phase.keep, *(phase.target if phase.action == "forget" else ())]
        if self.config.published_prototypes:
            self.prototypes = {}
        else:  # those of later phases too: they are to be the pretrained model's
            known += phase.later
        new = [c for c in known if self.domain.classes.row(c) not in self.prototypes]
        if new:
            self.prototypes |= training_means(self, new)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        loss, c = super().swap_loss(step, target, keep), self.config
        if step.phase.action == "forget":
            weight = for_phase(
                c.prototype_forget_weights, c.prototype_forget_weight, step.phase, "--prototype-forget-weights"
            )
            apart = self._divergence(target)
            gap = F.relu(c.prototype_bound - (apart if c.bound_per_item else distributed.mean(_mean(apart))))
            loss = loss + weight * step.log("prototype_push", _mean(gap))
        if keep is not None and c.prototype_keep_weight:
            loss = loss + c.prototype_keep_weight * step.log("prototype_pull", _mean(self._divergence(keep)))
        return loss

    def _divergence(self, prediction: Prediction) -> Tensor:
        """[M] KL(softmax(p_c) || softmax(z)) of the items whose class has a prototype."""
        wanted, known = stacked(self.prototypes, prediction.labels)
        if not len(wanted):
            return prediction.embedding.sum(-1)[:0]
        log_z = F.log_softmax(prediction.embedding[known].float(), dim=-1)
        log_p = F.log_softmax(wanted.to(log_z), dim=-1)
        return (log_p.exp() * (log_p - log_z)).sum(-1)

    # ---- running average ---------------------------------------------------------------------------------

    def after_step(self, step: Step, lr: float) -> None:
        super().after_step(step, lr)
        if not (self.config.ema_decay and step.at.ends_epoch and step.at.epoch >= self.config.ema_from_epoch):
            return
        self.average.update()

    def end_phase(self, phase: Phase) -> None:
        super().end_phase(phase)
        self.average.settle()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.prototypes = {row: mean.cpu() for row, mean in self.prototypes.items()}


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 of nothing; a scalar stays as it is."""
    return values.sum() / max(1, values.numel())


METHOD = GSLoRApp
