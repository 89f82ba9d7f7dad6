"""Similarity of two models' embeddings of the same items."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError

DISTANCES = ("linear_cka", "euclidean", "cosine", "manhattan")


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of [N, D1] and [N, D2], rows of the same items: 0 unlike .. 1 alike.

    Invariant to rotation, shift and scale. 0 when one of them is the same for all items.

    Source: Kornblith et al., ICML 2019, arXiv:1905.00414.
    """
    _check(x, y)
    x, y = (z.detach().double() - z.detach().double().mean(0) for z in (x, y))
    if min(x.shape[1], y.shape[1]) > len(x):  # [N, N] products are the smaller ones
        gram_x, gram_y = x @ x.T, y @ y.T
        shared, own = (gram_x * gram_y).sum(), gram_x.norm() * gram_y.norm()
    else:
        shared, own = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(shared / own) if own > 0 else 0.0


def distribution_distance(x: Tensor, y: Tensor, kind: str = "linear_cka") -> float:
    """Distance of [N, D] embeddings by two models of the same items; low means that one could be the other.

    kind: "linear_cka" (1 - CKA, 0..1), or the mean over items of "euclidean", "manhattan" or "cosine" (1 - cos).

    Source: CLArena's measure of unlearning, where y comes from the model retrained without the forgotten tasks.
    """
    if kind not in DISTANCES:
        raise UserError(f"`kind` must be one of {', '.join(DISTANCES)}, got {kind}.")
    if kind == "linear_cka":
        return 1 - linear_cka(x, y)
    _check(x, y)
    if x.shape != y.shape:
        raise UserError(f"{kind} distance needs equal widths, got {x.shape[1]} and {y.shape[1]}; use linear_cka.")
    x, y = x.detach().double(), y.detach().double()
    if kind == "cosine":
        return float(1 - torch.cosine_similarity(x, y, dim=1).mean())
    return float((x - y).norm(p=2 if kind == "euclidean" else 1, dim=1).mean())


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
        raise UserError(
            f"embeddings must be [N, D] of the same N > 1 items, got {tuple(x.shape)} and {tuple(y.shape)}."
        )
