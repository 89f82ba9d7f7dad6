"""The two numbers of forgetting, drop and harmonic mean; every score is 0..100."""

from __future__ import annotations


def drop(before: float, after: float) -> float:
    """How many points a score fell; negative when it rose."""
    return before - after


def h_mean(retain: float, drop: float) -> float:
    """Harmonic mean of the retained classes' score and the forgotten ones' drop, 0..100.

    A negative drop counts as 0, and the mean with 0 is 0: nothing was forgotten, or nothing is left.

    Source: GS-LoRA, Zhao et al., CVPR 2024, arXiv:2403.11530.
    """
    retain, drop = max(0.0, retain), max(0.0, drop)
    return 2 * retain * drop / (retain + drop) if retain + drop > 0 else 0.0
