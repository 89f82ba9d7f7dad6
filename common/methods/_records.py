"""Updates of learn phases, recorded so that a forget phase can take them out again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.methods._snapshots import Weights, snapshot
from common.plan import Phase
from common.state import Saved


@torch.no_grad()
def take_out(model: nn.Module, start: Weights, end: Weights) -> None:
    """theta <- theta - (end - start), computed in double precision.

    An entry that has not moved since the end of that phase is put back to its start, bit for bit: float
    subtraction alone would not be exact.
    """
    own = model.state_dict(keep_vars=True)
    for name, now in own.items():
        if name not in start:
            continue
        s, e = start[name], end[name]
        if now.shape != e.shape:
            raise UserError("recorded updates do not fit stacked adapters; use --lora-between-phases continue.")
        wide = torch.float64 if now.is_floating_point() else now.dtype
        less = (now.to(wide) - (e.to(wide) - s.to(wide))).to(now.dtype)
        now.copy_(torch.where(now == e, s, less))


class Records(Saved):
    """What each learn phase changed, by its groups; while a record stands, its phase can be unlearned.

    Args:
        age: a phase can be unlearned while fewer than `age` learn phases have followed it; 0: always.
    """

    saved: tuple[str, ...] = ("kept", "start", "learned")

    def __init__(self, age: int = 0) -> None:
        self.age = age
        self.kept: list[dict[str, Any]] = []
        self.start: Weights = {}
        self.learned = 0

    def begin(self, model: nn.Module) -> None:
        """Notes the state before a learn phase."""
        self.start = snapshot(model)

    def end(self, model: nn.Module, phase: Phase) -> None:
        """Keeps the record of a learn phase and drops those that have become too old by it."""
        self.learned += 1
        record = {"groups": list(phase.groups), "number": self.learned, "start": self.start, "end": snapshot(model)}
        self.kept = [r for r in self.kept if not self.age or self.learned - r["number"] < self.age]
        self.kept.append(record)
        self.start = {}

    def unlearn(self, model: nn.Module, groups: Sequence[str]) -> list[dict[str, Any]]:
        """Takes out the updates of these groups, the newest first; returns the records taken out.

        Groups without a record (pretrained, expired, or learned together with others that stay) are left as
        they are, with a warning.
        """
        wanted, done, found = set(groups), [], []
        for record in reversed(list(self.kept)):
            if set(record["groups"]) <= wanted:
                take_out(model, record["start"], record["end"])
                self.kept = [r for r in self.kept if r is not record]
                done += record["groups"]
                found.append(record)
        missing = [g for g in groups if g not in done]
        if missing:
            warnings.warn(f"no recorded update of {', '.join(missing)}: nothing is unlearned there.", stacklevel=2)
        return found
