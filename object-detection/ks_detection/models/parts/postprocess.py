"""The best (query, class) pairs of each image as boxes in pixels."""

import torch
from torch import Tensor

from ks_detection.models.parts.boxes import cxcywh_to_xyxy

Detections = dict[str, Tensor]  # scores [N], labels [N], boxes [N, 4] xyxy


def post_process(
    outputs: dict, sizes: list[tuple[int, int]], num_select: int = 300, score_threshold: float = 0.0
) -> list[Detections]:
    """Per image the `num_select` best pairs above the threshold, best first; no suppression of overlaps.

    Args:
        outputs: `pred_logits` [B, Q, C] and `pred_boxes` [B, Q, 4] cxcywh in 0..1.
        sizes: (height, width) in pixels that each image's boxes are scaled to.
    """
    probabilities = outputs["pred_logits"].float().sigmoid()
    classes = probabilities.shape[-1]
    flat = probabilities.flatten(1)
    scores, index = flat.topk(min(num_select, flat.shape[1]), dim=1)
    queries = torch.div(index, classes, rounding_mode="floor")
    corners = cxcywh_to_xyxy(outputs["pred_boxes"].float())
    results = []
    for row, (height, width) in enumerate(sizes):
        keep = scores[row] >= score_threshold
        scale = corners.new_tensor([width, height, width, height])
        boxes = corners[row, queries[row, keep]] * scale
        results.append({"scores": scores[row, keep], "labels": index[row, keep] % classes, "boxes": boxes})
    return results
