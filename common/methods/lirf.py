"""LIRF: the lower half of the network forgets, a copy of it keeps what was forgotten, the upper half is frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.domain import Domain, Prediction
from common.errors import UserError
from common.knobs import knob
from common.losses import soft_kl
from common.methods._base import Step
from common.methods._relabel import cross_entropy, relabelled
from common.methods._unlearning import Unlearning
from common.plan import Phase
from common.sparsity import block_of
from common.teacher import fill


class LIRF(Unlearning):
    """forget, with o the student's, o_t the teacher's (the model before the phase) and o_d the deposit's logits:

    (1 - alpha) CE(o(x_f), wrong label) - attention_weight mean (a(x_f) - a_t(x_f))^2
    + 10 alpha KD_kept(o, o_t) + deposit_weight [alpha KD_forgotten(o_d, o_t) + (1 - alpha) CE(o_d(x_f), y)]
    + keep_weight L(keep),

    KD_S = T^2 KL(softmax(o_t[S] / T) || softmax(o[S] / T)) over the logits S of the classes that are not, or are,
    being forgotten; a = mean over tokens of the squared output of the last lower block, brought to length 1,
    then entries below 0.005 set to 0.

    The lower half is everything registered before the middle one of the blocks that carry adapters
    (`Domain.lora_targets`), which fits Transformers: stem, embeddings and the first half of the blocks. Only
    it trains, and the deposit, which is a second lower half and takes that much memory. It still
    knows what was forgotten.

    Unlike in the published baseline, the kept and forgotten logits are those of the
    classes (there: the first P columns, whatever the order), the deposit is trained (there it is in no
    optimizer) and learns the true labels.

    Source: Ye et al., ECCV 2022, arXiv:2207.08224, with attention transfer, arXiv:1612.03928; constants of
    GS-LoRA's baseline (arXiv:2501.09705): T = 10, alpha = 0.1, weights 300, 10, 0.05 and 5; lr 1e-4.
    """

    needs = "keep, teacher, deposit (half a model)"
    checked = "the code of GS-LoRA, where it is a baseline"
    trains = "backbone"
    teaches = True
    own: nn.Module  # the deposit

    @dataclass
    class Config(Unlearning.Config):
        trains: str = knob("backbone", "what moves", ["backbone"])
        keep_weight: float = knob(5.0, "weight of the keep loss")
        published_epochs: bool = knob(False, "an epoch passes over the classes that a phase trains, as published")
        alpha: float = knob(0.1, "share of distillation against labels")
        temperature: float = knob(10.0, "softens distributions; T_L")
        attention_weight: float = knob(300.0, "push of the middle features")
        distil_weight: float = knob(10.0, "weight of the distillation of kept logits")
        deposit_weight: float = knob(0.05, "weight of the deposit's loss")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        blocks = list(dict.fromkeys(block_of(n) for names in domain.lora_targets(model).values() for n in names))
        order = {name: i for i, (name, _) in enumerate(model.named_modules())}
        blocks = sorted((b for b in blocks if b in order), key=order.__getitem__)
        if len(blocks) < 2:
            raise UserError("`--method lirf` halves a stack of blocks; this model names fewer than two.")
        self.middle = blocks[len(blocks) // 2 - 1]
        names = [name for name, _ in model.named_parameters()]
        upper = next(i for i, name in enumerate(names) if name.startswith(blocks[len(blocks) // 2] + "."))
        head = set(domain.head_rows(model, domain.classes.names))
        self.low = names[:upper]
        for name, parameter in model.named_parameters():
            if name not in self.low and name not in head:
                parameter.requires_grad_(False)
        low = set(self.low)
        shared = {id(p): p for n, p in model.named_parameters() if n not in low and not p.requires_grad}
        self.own = copy.deepcopy(model, shared)
        for name, parameter in self.own.named_parameters():
            parameter.requires_grad_(name in low and parameter.requires_grad)

    def epoch_items(self, phase: Phase) -> int:
        return (
            self.domain.size(phase.target, train=True) if self.config.published_epochs else super().epoch_items(phase)
        )

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if phase.action == "forget":
            fill(self.own, self.model.state_dict())

    def loss(self, step: Step) -> Tensor:
        if step.phase.action == "learn":
            idle = sum(p.sum() for p in self.own.parameters() if p.requires_grad) * 0.0  # DDP wants its gradient
            return super().loss(step) + idle
        c, rows = self.config, self._rows(step.phase)
        student, attention = self._with_attention(self.model, step.target)
        assert self.teacher is not None, "`begin_phase` makes the teacher"
        with torch.no_grad():
            teacher, old_attention = self._with_attention(self.teacher.module, step.target)
        deposit = self.domain.predict(self.own, step.target)
        labels = relabelled(self.domain, step.phase, student.labels)
        loss = (1 - c.alpha) * step.log("relabelled", cross_entropy(student.scores, labels))
        loss = loss - c.attention_weight * step.log("attention", F.mse_loss(attention, old_attention))
        kept = step.log("distil", self._distil(student, teacher, rows["kept"]))
        loss = loss + c.distil_weight * c.alpha * kept
        own = c.alpha * self._distil(deposit, teacher, rows["forgotten"]) + (1 - c.alpha) * deposit.loss
        loss = loss + c.deposit_weight * step.log("deposit", own)
        if step.keep is not None:
            loss = loss + c.keep_weight * step.log("keep", self.domain.predict(self.model, step.keep).loss)
        return loss

    def _rows(self, phase: Phase) -> dict[str, list[int]]:
        forgotten = self.domain.classes.rows(phase.target)
        return {"forgotten": forgotten, "kept": [r for r in range(len(self.domain.classes)) if r not in forgotten]}

    def _distil(self, student: Prediction, teacher: Prediction, rows: list[int]) -> Tensor:
        if not student.scores.numel() or not rows:
            return student.scores.sum() * 0.0
        return soft_kl(student.scores[:, rows], teacher.scores[:, rows], self.config.temperature)

    def _with_attention(self, model: nn.Module, batch: Any) -> tuple[Prediction, Tensor]:
        """A prediction, and the normalised attention vector of the last lower block."""
        with _caught(model.get_submodule(self.middle)) as outputs:
            prediction = self.domain.predict(model, batch)
        tokens = outputs[-1].float()
        square = tokens.square().flatten(1, -2).mean(1) if tokens.dim() > 2 else tokens.square()  # [N, D]
        attention = F.normalize(square, dim=-1)
        return prediction, attention * (attention >= 0.005)


@contextmanager
def _caught(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of `module` while inside."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda m, inputs, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        yield outputs
    finally:
        handle.remove()


METHOD = LIRF
