"""What each process of the two-rank test of segmentation does; a file of its own so that it can be spawned."""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def gradients(rank, world):
    """Gradients of one training step on this rank's half of four pictures, points fixed."""
    from ks_segmentation.models.parts.criterion import Criterion
    from tiny_mask2former import RESNET, model

    from common import distributed

    torch.set_num_threads(1)
    line = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(1))
    torch.rand, drawn = lambda *shape, **_: line[: shape[-2]].expand(shape).clone(), torch.rand
    try:
        made = model(RESNET)
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        labels = torch.zeros(4, 64, 64, dtype=torch.long)
        for i in range(4):  # another number of segments in each
            for k in range(i + 1):
                labels[i, 16 * k :] = k
        part = slice(rank * 4 // world, (rank + 1) * 4 // world)
        wrapped = distributed.wrap(made, torch.device("cpu"))
        Criterion(made.config)(wrapped(images[part]), labels[part]).total.backward()
        return {n: p.grad.numpy() for n, p in made.named_parameters() if p.grad is not None}
    finally:
        torch.rand = drawn


def worker(number, world, folder, first=0):
    """Rank `first + number`: joins the group, computes, leaves."""
    rank = first + number
    root = HERE.parents[1]
    sys.path[:0] = [str(HERE), *(str(root / p) for p in (".", "object-detection/ops", "semantic-segmentation"))]
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = gradients(rank, world)
    if rank == 0:
        torch.save({n: torch.from_numpy(g) for n, g in found.items()}, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()
