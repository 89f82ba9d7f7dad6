"""A setting of a config dataclass: its default, its help, what may be chosen, and between which bounds it lies."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import field, fields
from typing import Any

from common.errors import UserError

LARGEST = 10**9  # of a setting without an upper bound of its own


def knob(
    default: Any,
    help: str,
    choices: Collection[str] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    per_phase: bool = False,
) -> Any:
    """A dataclass field that `config.add_flags` turns into a flag with this help and these choices.

    Args:
        least, above: the smallest value, or the one that must be exceeded.
        most, below: the largest value, or the one that must not be reached. NaN lies within no bounds.
        per_phase: the text holds one number per phase, see `Settings.check_lists`.

    A number without a lower bound must not be negative; no number without an upper one may be above `LARGEST`.
    """
    bounds = {"least": least, "above": above, "most": most, "below": below}
    if isinstance(default, int | float) and not isinstance(default, bool) and least is None and above is None:
        bounds["least"] = 0
    metadata = {
        "help": help,
        "per_phase": per_phase,
        **{name: bound for name, bound in bounds.items() if bound is not None},
    }
    return field(default=default, metadata=metadata | ({"choices": list(choices)} if choices else {}))


class Checked:
    """Base of config dataclasses: checks the choices and bounds of every field when one is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            check(f"`--{item.name.replace('_', '-')}`", getattr(self, item.name), dict(item.metadata))


def check(name: str, value: Any, bounds: dict[str, Any]) -> None:
    """Raises UserError for a value that is none of the choices of its knob, or lies outside its bounds; None is no value."""
    if value is None:
        return
    choices = bounds.get("choices", [value])
    if value not in choices:
        *others, last = map(str, choices)
        raise UserError(f"{name} must be {' or '.join(filter(None, (', '.join(others), last)))}, got {value}.")
    low, high = bounds.get("least", bounds.get("above")), bounds.get("most", bounds.get("below"))
    if low is None and high is None:
        return
    fits = [
        value >= bounds.get("least", -math.inf),
        value > bounds["above"] if "above" in bounds else True,
        value <= bounds.get("most", math.inf),
        value < bounds["below"] if "below" in bounds else True,
    ]
    if all(fits):
        if high is None and value > LARGEST:
            raise UserError(f"{name} must be at most {LARGEST:,}, got {value}.")
        return
    first = "above 0" if "above" in bounds else "0"
    if (low, high) == (0, 1):
        raise UserError(f"{name} is a share, {first} up to 1, got {value}.")
    lower = f"be above {low}" if "above" in bounds else "not be negative" if low == 0 else f"be at least {low}"
    upper = f"be below {high}" if "below" in bounds else f"be at most {high}"
    wanted = " and ".join(text for text, bound in ((lower, low), (upper, high)) if bound is not None)
    raise UserError(f"{name} must {wanted}, got {value}.")
