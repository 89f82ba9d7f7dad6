"""Recovery radius: the smallest change of the input that brings a forgotten answer back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.domain import Batch, Domain

LARGEST, STEPS, RESTARTS, BISECTIONS = 8 / 255, 20, 2, 6


def radii(domain: Domain, model: nn.Module, batch: Batch, deviation: Sequence[float], seed: int = 0) -> Tensor:
    """[N] smallest L-inf perturbation, in shares of the pixel range, that makes the model name the true class.

    0 where it does so anyway; infinite where 8/255 is not enough. Small on forgotten and large on never-seen classes:
    the knowledge lies just below the surface. Compare with how little makes retained images change their answer.

    Args:
        batch: has a field `images`, [N, C, H, W] normalised, one item per image.
        deviation: of each channel, by which pixels (0..1) were divided.

    Constants: projected gradient ascent, 20 steps of 2.5 eps / 20, 2 restarts, 6 bisections of 0..8/255.

    Source: Madry et al., 2018, arXiv:1706.06083 for the search.
    """
    size = torch.tensor(deviation).view(-1, 1, 1).to(batch.images)
    low = torch.zeros(len(batch.images), device=batch.images.device)
    high = torch.full_like(low, LARGEST)
    found = _named(domain, model, batch, batch.images, low, size, seed)
    reached = _named(domain, model, batch, batch.images, high, size, seed) | found
    high = torch.where(found, torch.zeros_like(high), high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        hit = _named(domain, model, batch, batch.images, middle, size, seed)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return torch.where(reached, high, torch.full_like(high, float("inf"))).cpu()


def _named(
    domain: Domain, model: nn.Module, batch: Batch, images: Tensor, eps: Tensor, size: Tensor, seed: int
) -> Tensor:  # fmt: skip
    """[N] whether the true class is named within `eps` of each image."""
    generator = torch.Generator(images.device).manual_seed(seed)
    reach = eps.view(-1, 1, 1, 1) / size
    hit = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for restart in range(RESTARTS if bool(eps.any()) else 1):
        start = 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1
        moved = start * reach if restart else torch.zeros_like(images)
        for _ in range(STEPS if bool(eps.any()) else 0):
            moved.requires_grad_(True)
            prediction = domain.predict(model, batch._replace(images=images + moved))
            (slope,) = torch.autograd.grad(
                F.cross_entropy(prediction.scores, prediction.labels, reduction="sum"), moved
            )
            hit |= prediction.scores.argmax(-1) == prediction.labels
            step = 2.5 / STEPS * reach * slope.sign()
            moved = (moved.detach() - step).clamp(-reach, reach)
        with torch.no_grad():
            prediction = domain.predict(model, batch._replace(images=images + moved.detach()))
        hit |= prediction.scores.argmax(-1) == prediction.labels
    return hit
