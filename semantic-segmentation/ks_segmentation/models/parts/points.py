"""Random points at which masks are compared, and the values of masks there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (
    8  # grid_sample is parallel over maps, and slow on wide ones whose channels lie apart: these go as so many maps
)


def random_points(*shape: int, device: torch.device) -> Tensor:
    """[*shape, 2] places x, y, uniform in 0..1. The only place where the loss draws random numbers."""
    return torch.rand(*shape, 2, device=device)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """[N, C, P] bilinear values of maps [N, C, h, w] at points [N, P, 2], x and y in 0..1 of the image.

    Cell centres lie half a cell inside the border, and outside the map is zero.
    """
    count, channels = maps.shape[:2]
    grid = torch.add(points.new_tensor(-1.0), points[:, None], alpha=2)
    together = maps.is_contiguous(memory_format=torch.channels_last)
    if count == 1 and channels and channels % GROUPS == 0 and not together:
        maps, grid = maps.unflatten(1, (GROUPS, -1))[0], grid.expand(GROUPS, -1, -1, -1)
    values = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return values.reshape(count, channels, points.shape[1])


@torch.no_grad()
def uncertain_points(
    masks: Tensor, count: int, oversample: float, importance: float, numbers: Sequence[int]
) -> Tensor:  # fmt: skip
    """[N, count, 2]: a share `importance` of points where the mask is least sure, the rest anywhere.

    Args:
        masks: [N, h, w] logits.
        oversample: this many times `count` points are drawn to choose the unsure ones from.
        numbers: masks of each image; points are drawn image by image, so that those of one do not depend on how many
            images are looked at together.

    Source: Kirillov et al., 2020, arXiv:1912.08193, section 3.1.
    """
    chosen = int(importance * count)
    drawn = [
        tuple(random_points(n, most, device=masks.device) for most in (int(count * oversample), count - chosen))
        for n in numbers
    ]
    candidates, others = map(torch.cat, zip(*drawn, strict=True))
    certainty = sample(masks[:, None], candidates)[:, 0].abs()
    unsure = certainty.topk(chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, unsure[..., None].expand(-1, -1, 2))
    return torch.cat([points, others], 1)
