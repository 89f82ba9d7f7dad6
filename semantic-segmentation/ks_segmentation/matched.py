"""What a segmenter says of annotated segments: the rows of each, and what covers it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from common.domain import OVERLAP, ClassTable, Matched
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.models.parts.inference import resized
from ks_segmentation.models.parts.segmenter import Outputs, Segmenter


def by_class(
    labels: Tensor, indices: Sequence[int], first: Mapping[str, Collection[int]], classes: ClassTable
) -> dict[str, Tensor]:
    """Class -> labels [B, H, W] with its segments only, on the pictures that are among the class's `first`; classes
    without one are left out. indices: of the pictures."""
    found = {}
    for name, own in first.items():
        shown = torch.tensor([i in own for i in indices])[:, None, None]
        if shown.any():
            found[name] = labels.where(shown & (labels == classes.row(name)), IGNORE)
    return found


def matched(model: Segmenter, outputs: Outputs, labels: Tensor) -> Matched:
    """Rows of the segments of labels [B, H, W], in the order of their classes, picture by picture."""
    scores, embeddings = [], []
    for index, _ in _showing(model, labels):
        (rows,) = model.rows(model.part(outputs, slice(index, index + 1)), labels[index : index + 1])
        scores.append(rows.scores)
        embeddings.append(rows.embedding)
    return Matched(torch.cat(scores), torch.cat(embeddings))


def located(model: Segmenter, outputs: Outputs, labels: Tensor) -> Tensor:
    """See `Domain.located`; over all that the model finds: `Segmenter.regions`."""
    found = []
    for index, known in _showing(model, labels):
        label = labels[index]
        masks, called, sure = model.regions(outputs, index, partial(resized, size=tuple(label.shape)))
        masks = masks.flatten(1)
        truth = torch.stack([label.flatten() == row for row in known]).to(masks.device)
        shared = truth.float() @ masks.float().T
        covers = shared / (truth.sum(1)[:, None] + masks.sum(1)[None] - shared).clamp_min(1)
        same = called[None] == torch.tensor(known, device=masks.device)[:, None]
        best = called[torch.where(covers >= OVERLAP, 1 + sure, covers).argmax(1)].to(covers)
        found.append(torch.stack([covers.amax(1), (covers * same).amax(1), best], dim=1))
    return torch.cat(found)


def _showing(model: Segmenter, labels: Tensor) -> Iterator[tuple[int, list[int]]]:
    """The pictures with a segment, and the rows of its classes; other labels are no class."""
    for index, label in enumerate(labels):
        known = [row for row in label.unique().tolist() if 0 <= row < model.num_classes]
        if known:
            yield index, known
