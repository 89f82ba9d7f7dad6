"""What a detector says of annotated objects: the query that is matched to each, and what covers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from common.domain import ClassTable, Matched
from common.lazy import Module
from ks_detection import gallery
from ks_detection.models.parts.boxes import cxcywh_to_xyxy
from ks_detection.models.parts.detector import Detector
from ks_detection.models.parts.matcher import Matches, match

ops = Module("torchvision.ops")
CANDIDATES = 100  # detections of a picture that count, as in COCO
Targets = list[dict[str, Tensor]]


def by_class(
    targets: Targets, indices: Sequence[int], first: Mapping[str, Collection[int]], classes: ClassTable
) -> dict[str, Targets]:
    """Class -> targets with its objects only, on the pictures that are among the class's `first`; the others are to be left
    alone. Classes without such a picture are left out. indices: of the pictures."""
    found = {}
    for name, own in first.items():
        if any(i in own for i in indices):
            row = classes.row(name)
            found[name] = [_narrowed(t, row, i in own) for t, i in zip(targets, indices, strict=True)]
    return found


def _narrowed(target: dict[str, Tensor], row: int, shown: bool) -> dict[str, Tensor]:
    own = (target["labels"] == row) & shown
    others = torch.cat([target["ignore"], target["boxes"][~own]])
    return {"labels": target["labels"][own], "boxes": target["boxes"][own], "ignore": others}


def matched(model: Detector, outputs: dict, targets: Targets) -> Matched:
    """Rows of the last layer's query of every object, in the order of the objects, picture by picture."""
    logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
    targets = [{name: value.to(boxes.device) for name, value in target.items()} for target in targets]
    (pairs,) = match(logits[None], boxes[None], targets, model.config)
    order = (pairs.rows * (1 + max(len(t["labels"]) for t in targets)) + pairs.objects).argsort()
    rows, queries = pairs.rows[order], pairs.queries[order]
    return Matched(logits[rows, queries], outputs["queries"].float()[rows, queries])


def labels_of(targets: Targets, pairs: Matches) -> Tensor:
    """[M] logit row of the object of each pair; targets on the device of the pairs."""
    found = [
        targets[row]["labels"][number] for row, number in zip(pairs.rows.tolist(), pairs.objects.tolist(), strict=True)
    ]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.long, device=pairs.rows.device)


def located(outputs: dict, targets: Targets) -> Tensor:
    """See `Domain.located`; over the CANDIDATES queries that are surest of any class. One is called by its best class, and
    "no object" where the score of that is not shown."""
    found, device = [], outputs["pred_logits"].device
    for logits, boxes, target in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
        sure, called = logits.float().max(-1)
        top = sure.topk(min(CANDIDATES, len(sure))).indices
        shown = called.where(sure.sigmoid() >= gallery.THRESHOLD, logits.shape[-1])
        covers = ops.box_iou(cxcywh_to_xyxy(target["boxes"].to(device)), cxcywh_to_xyxy(boxes[top].float()))
        same = called[top] == target["labels"].to(device)[:, None]
        best = gallery.surest(covers, sure[top].sigmoid())
        found.append(torch.stack([covers.amax(1), (covers * same).amax(1), shown[top][best].to(covers)], dim=1))
    return torch.cat(found)
