"""Disperse: forgotten items are pushed away from their class, and in every adapted block from one another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.features import blocks, watched
from common.knobs import knob
from common.losses import mean_over_ranks
from common.methods._base import Step
from common.methods.replay import Replay


class Disperse(Replay):
    """learn:  that of `replay`
    forget: L(keep) + forget_weight relu(bound - L(target)) + disperse_weight mean_b mean_i
            relu(-log(1 - m_bi) + log(1 - 1 / K))

    m_bi is the share of item i's own class among its neighbours in block b, over the items of both batches; at 1 / K, with K
    classes in the phase, they tell nothing of the class and are let be:

        m_bi = sum_{j != i, y_j = y_i} e^{s_ij} / sum_{j != i} e^{s_ij},   s_ij = cos(z_i, z_j) / temperature - log n(y_j)

    z is the block's output, mean over tokens, standardised by mean and deviation of the keep items; n(y) counts the items
    of a class, so that classes weigh alike. The last "block" is the embedding. Few-shot attackers (probe, prototype,
    relearning) live on neighbours of one class; an answer alone can be changed without moving any of them. Blocks whose
    output has no row per item (detection, segmentation) are left out, the embedding remains.

    The push is that of Knowledge Swapping, arXiv:2502.08075; m is the neighbourhood share of NCA, Goldberger et al.,
    NIPS 2004, eq. 2-3, with cosines, minimised instead of maximised.
    """

    @dataclass
    class Config(Replay.Config):
        bound: float = knob(5.0, "loss (nats) at which an item counts as forgotten", above=0)
        disperse_weight: float = knob(1.0, "weight of the neighbours of the same class")
        disperse_temperature: float = knob(
            0.1, "of the softmax over cosines; lower looks at nearer neighbours", above=0
        )

    def loss(self, step: Step) -> Tensor:
        if step.phase.action != "forget" or step.keep is None:
            return super().loss(step)
        with watched(self.model, blocks(self.domain, self.model)) as seen:
            target, keep = self.domain.predict_together(self.model, [step.target, step.keep])
        labels, count = torch.cat([target.labels, keep.labels]), len(target.labels)
        outputs = [
            *(out for out in seen.values() if len(out) == len(labels)),
            torch.cat([target.embedding, keep.embedding]),
        ]
        shares = torch.stack([own_share(out, labels, count, self.config.disperse_temperature) for out in outputs])
        chance = math.log1p(-1 / max(2, len(step.phase.target) + len(step.phase.keep)))
        apart = mean_over_ranks(F.relu(chance - torch.log1p(-shares.clamp(max=MOST))).mean(0))
        return self.swap_loss(step, target, keep) + self.config.disperse_weight * step.log("neighbours", apart)


MOST = 1 - 1e-4  # share of the own class from which on its slope is 0, before the logarithm ends


def own_share(features: Tensor, labels: Tensor, count: int, temperature: float) -> Tensor:
    """[count] share of its own class among the neighbours of each of the first `count` items, 0..1.

    Args:
        features: [N, D], labels: [N]; the items behind the first `count` are those whose spread is the unit.
    """
    kept = features[count:].detach().float()
    unit = kept.std(0, correction=0) + 1e-6 if len(kept) else 1.0
    z = F.normalize((features.float() - (kept.mean(0) if len(kept) else 0.0)) / unit, dim=1)
    same = labels[:, None] == labels[None]
    scores = z[:count] @ z.T / temperature - same.sum(1).log()[None]
    itself = torch.eye(count, len(labels), dtype=torch.bool, device=labels.device)
    return (scores.masked_fill(itself, -torch.inf).softmax(1) * same[:count]).sum(1)


METHOD = Disperse
