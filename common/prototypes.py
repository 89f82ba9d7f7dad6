"""Class prototypes: the mean embedding of each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

Prototypes = dict[int, Tensor]  # logit row -> [D]


def class_means(pairs: Iterable[tuple[Tensor, Tensor]], normalize: bool = False) -> Prototypes:
    """Class -> [D] mean of its embeddings, on the CPU, summed in double precision.

    Args:
        pairs: (embeddings [N, D], labels [N]) batches; every item counts once, whatever the batch sizes.
        normalize: bring every embedding to length 1 first (iCaRL, LUCIR).
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    kind = torch.float32
    for embeddings, labels in pairs:
        kind = embeddings.dtype
        z = embeddings.detach().double().cpu()
        if z.dim() != 2 or labels.shape != z.shape[:1]:
            raise UserError(f"embeddings {tuple(z.shape)} and labels {tuple(labels.shape)} must be [N, D] and [N].")
        z = F.normalize(z) if normalize else z
        labels = labels.cpu()
        for c in labels.unique().tolist():
            own = z[labels == c]
            sums[c] = sums.get(c, 0) + own.sum(0)
            counts[c] = counts.get(c, 0) + len(own)
    return {c: (sums[c] / counts[c]).to(kind) for c in sorted(sums)}


def stacked(found: Mapping[int, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """(prototypes [M, D] of the items' classes, mask [N] of the items that have one); M is the mask's count."""
    known = torch.tensor([int(c) in found for c in labels], dtype=torch.bool, device=labels.device)
    rows = [found[int(c)] for c in labels[known]]
    if not rows:
        width = next(iter(found.values())).shape[0] if found else 0
        return torch.empty(0, width, device=labels.device), known
    return torch.stack(rows).to(labels.device), known
