"""LUCIR: a cosine classifier with a penalty on turned features and a margin between old and new classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.domain import Domain, Prediction
from common.knobs import knob
from common.losses import HIDDEN
from common.methods._base import Step
from common.methods._continual import Continual
from common.methods._head import linear_head, training_means
from common.methods._relabel import cross_entropy, relabelled
from common.plan import Phase


class LUCIR(Continual):
    """learn: CE(eta s) on target and keep + lambda L_dis + rank_weight L_mr, where s_i = <theta_i, z> / (|theta_i| |z|),

    L_dis = mean over all items of 1 - cos(z_before, z)                               (less-forget, eq. 6),
    lambda = distil_weight sqrt(|old classes| / |new classes|)                        (adaptive weight, eq. 7),
    L_mr = mean over old items, K nearest new classes of max(0, margin - s_y + s_k)   (margin ranking, eq. 8).

    eta is one learned scale for all classes. New rows start imprinted: theta_c = mean |theta_old| times the
    direction of the class's mean normalised embedding. Old rows are frozen. Keep batches
    come from a herded memory. At the end of a phase all rows get one length and the biases become 0, so that
    the model's own linear layer answers what the cosine classifier says. First phase without old classes: CE.
    forget: the same with wrong labels for the target, without imprinting or ranking.

    The paper removes the last ReLU of the backbone and uses SGD (lr 0.1, 160 epochs, weight decay 5e-4);
    Transformers have no such ReLU, and the loop's optimizer stands. Needs one linear classifier.

    Source: Hou et al., CVPR 2019, and its code: lambda base 5 (CIFAR-100) or 10 (ImageNet), margin 0.5, K = 2,
    20 exemplars per class.
    """

    needs = "memory, teacher"
    checked = "the authors' code"
    teaches = True
    memorises = True
    saved: tuple[str, ...] = ("frozen", "rows_before")
    own: nn.ParameterDict

    @dataclass
    class Config(Continual.Config):
        trains: str = knob("all", "what moves", ["all"])
        exemplars: int = knob(20, "items remembered per class; 0 also means 20", least=0)
        distil_weight: float = knob(5.0, "less-forget weight; lambda base in the paper")
        rank_weight: float = knob(1.0, "weight of the margin ranking")
        margin: float = knob(0.5, "margin of the ranking, in cosine; m in the paper")
        nearest: int = knob(2, "new classes that each old item is ranked against; K")
        imprint: bool = knob(True, "start new rows at their class means")
        scale: float = knob(0.0, "eta at the start; 0 measures |theta| |z| (published: 1)")

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.head = linear_head(domain, model, "lucir")
        self.own = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(config.scale))})
        self.frozen: list[int] = []
        self.rows_before: Tensor | None = None

    # ---- the loss ----------------------------------------------------------------------------------------

    def cosines(self, embedding: Tensor) -> Tensor:
        """[N, C] cosine of every item with every class row."""
        rows = self.head.weight[: len(self.domain.classes)]
        return F.normalize(embedding.float(), dim=-1) @ F.normalize(rows.float(), dim=-1).T

    def known(self, phase: Phase, cosine: Tensor) -> Tensor:
        """The cosines without the rows of classes that only later phases learn: they take no part in the softmax."""
        later = [r for r in self.domain.classes.rows(phase.unknown) if r not in self.domain.classes.rows(phase.target)]
        return cosine.index_fill(1, torch.tensor(later, device=cosine.device, dtype=torch.long), HIDDEN)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        labels = target.labels
        if step.phase.action == "forget":
            labels = relabelled(self.domain, step.phase, labels, self.config.published_relabel)
        cosine, scale = self.known(step.phase, self.cosines(target.embedding)), self.own["scale"]
        loss = step.log("target", cross_entropy(scale * cosine, labels))
        if keep is not None:
            old = self.known(step.phase, self.cosines(keep.embedding))
            loss = loss + self.config.keep_weight * step.log("keep", cross_entropy(scale * old, keep.labels))
            loss = loss + self.retain(step, target, keep, old)
        unused = target.scores.sum() * 0.0  # the bias has no part in a cosine; DDP wants a gradient for it
        return loss + unused

    def retain(self, step: Step, target: Prediction, keep: Prediction, cosine: Tensor) -> Tensor:
        """The less-forget constraint and the margin ranking."""
        c, phase = self.config, step.phase
        batches, students = [step.target, step.keep], [target, keep]
        if phase.action == "forget":
            batches, students = batches[1:], students[1:]
        taught = torch.cat([t.embedding for t in self.taught(batches)])
        now = torch.cat([s.embedding for s in students])
        apart = 1 - F.cosine_similarity(now.float(), taught.float(), dim=-1)
        loss = self.adaptive(phase) * step.log("less_forget", apart.sum() / max(1, len(apart)))
        if phase.action == "learn" and c.rank_weight:
            loss = loss + c.rank_weight * step.log("ranking", self.ranking(phase, cosine, keep.labels))
        return loss

    def adaptive(self, phase: Phase) -> float:
        """lambda: heavier the more old classes there are per new one."""
        return self.config.distil_weight * math.sqrt(len(phase.keep) / len(phase.target))

    def ranking(self, phase: Phase, cosine: Tensor, labels: Tensor) -> Tensor:
        """How far old items are from beating the nearest new classes by the margin. Scalar, 0 when all do."""
        new = cosine[:, self.domain.classes.rows(phase.target)]
        near = new.topk(min(self.config.nearest, new.shape[1]), dim=1).values  # [N, K]
        own = cosine.gather(1, labels[:, None])
        gap = F.relu(self.config.margin - own + near)
        return gap.sum() / max(1, gap.numel())

    # ---- phases ------------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        if self.own["scale"].item() == 0:
            self._measure_scale(phase)
        if phase.action == "learn" and phase.keep and self.config.imprint:
            self.imprint(phase)
        target = set(self.domain.classes.rows(phase.target)) if phase.action == "learn" else set()
        self.frozen = [r for r in range(self.head.weight.shape[0]) if r not in target] if phase.keep else []
        self.rows_before = self.head.weight.detach()[self.frozen].clone()

    @torch.no_grad()
    def _measure_scale(self, phase: Phase) -> None:
        """eta such that cosine logits are about as large as the linear ones were."""
        sums = torch.zeros(2, device=self.head.weight.device)
        for batch in self.pass_over(phase.keep or phase.target):
            lengths = self.domain.predict(self.model, batch).embedding.float().norm(dim=-1)
            sums += torch.stack([lengths.sum(), lengths.new_tensor(float(len(lengths)))])
        total, count = distributed.total(sums).tolist()
        self.own["scale"].fill_(total / max(1.0, count) * self.head.weight.norm(dim=1).mean().item())

    @torch.no_grad()
    def imprint(self, phase: Phase) -> None:
        """Sets the new rows to their class directions, with the mean length of the old rows."""
        old = self.head.weight[self.domain.classes.rows(phase.keep)].norm(dim=1).mean()
        for row, mean in training_means(self, phase.target, normalize=True).items():
            self.head.weight[row] = old * F.normalize(mean, dim=0).to(self.head.weight)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        if self.frozen and self.head.weight.grad is not None:
            self.head.weight.grad[self.frozen] = 0

    @torch.no_grad()
    def after_step(self, step: Step, lr: float) -> None:
        if self.frozen and self.rows_before is not None:  # weight decay moves rows that have no gradient
            self.head.weight[self.frozen] = self.rows_before

    @torch.no_grad()
    def end_phase(self, phase: Phase) -> None:
        super().end_phase(phase)
        length = self.head.weight.norm(dim=1).mean()
        self.head.weight.copy_(length * F.normalize(self.head.weight, dim=1))
        if self.head.bias is not None:
            self.head.bias.zero_()


METHOD = LUCIR
