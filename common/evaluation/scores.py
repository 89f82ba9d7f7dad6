"""The two numbers of forgetting, drop and harmonic mean; every score is 0..100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.errors import UserError

BEFORE = ("pretrained", "phase_start")


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


def forget_h_mean(
    history: Sequence[Mapping[str, float]],
    phase: int,
    forget: str,
    retain: str = "retain",
    before: str = "pretrained",
) -> float:
    """H-mean of one forgetting phase.

    Args:
        history: history[i] is group -> score after phase i; history[0] is the state before training.
        phase: 1-based.
        forget, retain: names of the groups.
        before: what the drop is measured from. "pretrained": the model before all phases, as in the published
            tables. "phase_start": the model that the phase began with, as the published code logs it.

    Raises:
        UserError: unknown `before`, phase or group.
    """
    if before not in BEFORE:
        raise UserError(f"`before` must be one of {', '.join(BEFORE)}, got {before}.")
    if not 1 <= phase < len(history):
        raise UserError(f"`phase` must be between 1 and {len(history) - 1}, got {phase}.")
    start = history[0 if before == "pretrained" else phase - 1]
    for scores, group in ((start, forget), (history[phase], forget), (history[phase], retain)):
        if group not in scores:
            raise UserError(f"group {group!r} has no score; there are: {', '.join(scores)}.")
    return h_mean(history[phase][retain], drop(start[forget], history[phase][forget]))
