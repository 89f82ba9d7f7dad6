"""Mask replay: forgotten items are answered as a model would that never saw their class; kept items are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.domain import Domain, Prediction
from common.knobs import knob
from common.losses import HIDDEN, masked_kl, mean_over_ranks
from common.methods._base import Step, Taught
from common.methods.replay import Replay
from common.plan import Phase
from common.teacher import Teacher

EVEN = 0.02  # share that all kept classes get alike, so that no answer is sure
SHARPEST, FLATTEST = 0.1, 50.0  # temperatures that are searched, in standard deviations of the scores
ROUNDS, SHIFTS = 20, 100  # how often temperature and shift are bettered
MOST, CHUNK = 4096, 256  # kept items that are compared with, and forgotten ones at a time


class MaskReplay(Replay, Taught):
    """learn:  learn_weight L(target) + keep_weight L(keep)
    forget: L(keep) + mask_weight KL(wanted || softmax(o)) on target items, wanted = 0 on classes that are forgotten or
            not learned yet

    `mask_answers` says what is wanted. "base": softmax(o_before / mask_temperature) over the other classes. But the model
    has learned to hold the forgotten class apart from what it resembles, so these tell less of that than a model that
    never saw the class does. "neighbours" makes up for it: softmax(o_before / T + b), where b and T are such that the
    items of a class are answered on average, and as surely, as the `mask_neighbours` kept training items that look most
    like them would have it, by what reaches the model (`Domain.seen`); "base" where the domain has no such view. Either
    way the forgotten items are neither pushed away without bound nor given to one other class.

    Where classes do not exclude one another (`Domain.exclusive`), there is no such answer; there
    forget: L(keep) + forget_weight relu(bound - m(target)) + hold_weight relu(m(keep) - m_before(keep)),
    the means over items of the loss m of each (`Prediction.item_loss`), m_before that of the model as the phase began. The
    first two terms are those of `replay`. The focal loss of a detector hardly changes where the update that forgets one
    class lowers the scores of the others too (by 0.01 where they fall from 0.7 to 0.55); the third term takes that back, in
    the units in which the class is pushed away.

    Source: our own. The target "base" is that of DELETE, Zhou et al., CVPR 2025, arXiv:2503.23751, eq. 7-9, whose
    temperature is 1 and which trains all parameters on the forget set alone. Adapters and the keep loss are of Knowledge
    Swapping, arXiv:2502.08075.
    """

    needs = "keep; teacher"
    saved: tuple[str, ...] = ("answers",)

    @dataclass
    class Config(Replay.Config):
        mask_weight: float = knob(4.0, "weight of the distance to the wanted answers", least=0)
        mask_answers: str = knob(
            "base",
            "what forgotten items are answered with: the old model's answers without the forgotten classes, as they are, "
            "or shifted to the classes of kept items that look like them",
            ["neighbours", "base"],
        )
        mask_neighbours: int = knob(5, "how many such items", least=1)
        mask_temperature: float = knob(0.3, "base: below 1 makes these answers surer than the old model's", above=0)
        hold_weight: float = knob(
            0.0,
            "where classes do not exclude one another: weight of what kept items have lost, in nats, since a forget "
            "phase began",
            least=0,
        )

    def __init__(self, config: Any, domain: Domain, model: nn.Module) -> None:
        super().__init__(config, domain, model)
        self.answers: dict[str, Tensor] = {}  # name of a forgotten item -> [C] log of its wanted answer

    spares = True
    reads_kept_items = True

    def _by_item(self, step: Step) -> bool:
        plain = not self.domain.exclusive or (self.teacher is None and not self.answers)
        return plain and super()._by_item(step)

    def begin_phase(self, phase: Phase) -> None:
        self.teacher, self.answers = None, {}
        if phase.action != "forget":
            return
        if not self.domain.exclusive:
            self.teacher = Teacher(self.model) if phase.keep and self.config.hold_weight else None
        else:
            if self.config.mask_answers == "neighbours" and phase.keep:
                self.answers = self._neighbours(phase)
            self.teacher = None if self.answers else Teacher(self.model)

    def swap_loss(self, step: Step, target: Prediction, keep: Prediction | None) -> Tensor:
        if self.teacher is None and not self.answers:
            return super().swap_loss(step, target, keep)
        if not self.domain.exclusive:
            return super().swap_loss(step, target, keep) + self.config.hold_weight * self._lost(step, keep)
        kept = 0.0 if keep is None else step.log("keep", keep.loss)
        step.log("target", target.loss)
        if self.answers:
            names = self.domain.item_names(step.target)
            masked = masked_kl(target.scores, torch.stack([self.answers[n] for n in names]).to(target.scores), [])
        else:
            (before,) = self.taught([step.target])
            hidden = self.domain.classes.rows([*step.phase.target, *step.phase.gone, *step.phase.unknown])
            masked = masked_kl(target.scores, before.scores, hidden, self.config.mask_temperature)
        return kept + self.config.mask_weight * step.log("masked", masked)

    def _lost(self, step: Step, keep: Prediction | None) -> Tensor:
        """How much more kept items are missed than before the phase, mean over them. Scalar, nats."""
        assert keep is not None and keep.item_loss is not None, (
            "a domain without exclusive classes gives losses of items"
        )
        (before,) = self.taught([step.keep])
        assert before.item_loss is not None
        return step.log("lost", mean_over_ranks(F.relu(keep.item_loss - before.item_loss)))

    @torch.no_grad()
    def _neighbours(self, phase: Phase) -> dict[str, Tensor]:
        """Name of a target item -> [C] log of its wanted answer; {} where there is no view of items."""
        kept, theirs, *_ = self._views(phase.keep, MOST)
        own, labels, scores, names = self._views(phase.target)
        if not len(kept) or not len(own):
            return {}
        count = min(self.config.mask_neighbours, len(kept))
        rows = torch.tensor(self.domain.classes.rows(phase.keep))
        share = scores.new_zeros(scores.shape)
        for part in range(0, len(own), CHUNK):
            near = torch.cdist(own[part : part + CHUNK], kept).topk(count, largest=False).indices  # [n, k]
            share[part : part + CHUNK].scatter_add_(
                1, theirs[near], torch.full_like(near, 1 / count, dtype=scores.dtype)
            )
        wanted = torch.full_like(scores, HIDDEN)
        for row in labels.unique():
            of_class = (labels == row).nonzero()  # [n, 1]
            wanted[of_class, rows] = matched(scores[of_class, rows], share[of_class, rows])
        return dict(zip(names, wanted, strict=True))

    def _views(self, classes: Sequence[str], most: int = 0) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """[N, D] views of the training items of classes, their rows [N], scores [N, C] and names, over all ranks; of
        `most` items."""
        size, items = self.domain.size(classes, train=True), None
        if 0 < most < size:
            chance = torch.Generator().manual_seed(self.train_config.seed)
            items = tuple(sorted(torch.randperm(size, generator=chance)[:most].tolist()))
        own = []
        for batch in self.pass_over(classes, items=items):
            if (view := self.domain.seen(self.model, batch)) is not None:
                found = self.domain.predict(self.model, batch)
                tensors = [t.cpu() for t in (view.flatten(1).float(), found.labels, found.scores.float())]
                own.append((*tensors, self.domain.item_names(batch)))
        parts = [part for rank in distributed.gather(own) for part in rank]
        if not parts:
            return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), torch.zeros(0, 1), []
        views, labels, scores, names = zip(*parts, strict=True)
        return torch.cat(views), torch.cat(labels), torch.cat(scores), [n for part in names for n in part]


def matched(scores: Tensor, share: Tensor) -> Tensor:
    """[N, K] log answers softmax(scores / T + b) whose mean, and whose mean largest share, are those of `share`.

    b [K] and T follow from these two conditions, as far as they can be met: an item still differs from the others as the
    model sees it, while the items together are answered as `share` says.
    """
    share = (1 - EVEN) * share + EVEN / share.shape[1]
    mean, sure = share.mean(0).log(), share.amax(1).mean()
    scores = scores / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)
    low, high = SHARPEST, FLATTEST
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        sharp = _shifted(scores / middle, mean).exp().amax(1).mean() > sure
        low, high = (middle, high) if sharp else (low, middle)
    return _shifted(scores / high, mean)


def _shifted(scores: Tensor, mean: Tensor) -> Tensor:
    """[N, K] log softmax(scores + b) whose mean is `mean` [K], given as a logarithm."""
    shift = torch.zeros_like(mean)
    for _ in range(SHIFTS):
        answers = (scores + shift).log_softmax(1)
        shift += mean - (answers.logsumexp(0) - math.log(len(scores)))
    return (scores + shift).log_softmax(1)


METHOD = MaskReplay
