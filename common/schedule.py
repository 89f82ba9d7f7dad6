"""The learning rate of a step."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total: int, peak: float, low: float, schedule: str, warmup: int = 0, per_epoch: int = 0
) -> float:
    """The learning rate of a 0-based step.

    Args:
        total: steps of the phase; the cosine ends there at `low`.
        schedule: "cosine" or "constant".
        warmup: steps of linear warm-up from peak / warmup.
        per_epoch: steps per epoch when the cosine moves once per epoch (as published), 0 to move every step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if per_epoch:
        step = step // per_epoch * per_epoch
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
