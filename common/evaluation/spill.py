"""Where the answers on forgotten test items go: by class, how sure, and how far from the base's own without the class.

A class whose items are all called one other class, and surely so, was not forgotten but renamed: a model that never saw
it spreads its items over what they resemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.domain import ClassTable
from common.losses import HIDDEN
from common.plan import Phase, Plan

Scores = Mapping[str, Tensor]  # class -> [N, C] class scores of its test items
LEAST = 1e-4  # a smaller share of the mean answer is left out of the record
FEW = 0.005  # likewise of the answers on a class


def absent(phase: Phase) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(classes that are forgotten after a phase, classes that no phase has learned by then)."""
    gone = (*phase.gone, *(phase.target if phase.action == "forget" else ()))
    return gone, tuple(c for c in phase.unknown if c not in phase.target)


def expected(scores: Scores, plan: Plan, table: ClassTable) -> dict[str, dict[str, dict[str, float]]]:
    """Phase -> forgotten class -> class -> share of the mean answer, were the forgotten and unknown classes taken out.

    Args:
        scores: of the base model, before the first phase, for every class that the plan forgets.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for phase in plan.phases:
        gone, unknown = absent(phase)
        hidden = torch.tensor(table.rows([*gone, *unknown]), dtype=torch.long)
        own = {}
        for name in gone:
            rest = scores[name].float().cpu()
            rest = rest.index_fill(1, hidden[hidden < rest.shape[1]], HIDDEN)
            own[name] = _shares(rest.softmax(1).mean(0), table)
        if own:
            found[str(phase.index)] = own
    return found


def spill(scores: Scores, base: Mapping[str, Mapping[str, float]], table: ClassTable) -> dict[str, dict[str, Any]]:
    """Per forgotten class: `answers` (class -> share of test items), `confidence` (mean top share, 0..1), and
    `distance`: total variation of the mean answer to that of `base`, 0..1.

    Args:
        scores: of the model after a phase, for the classes that are forgotten then.
        base: class -> the mean answer of the base without the forgotten classes (`expected`, for this phase).
    """
    found = {}
    for name, own in scores.items():
        share = own.float().cpu().softmax(1)
        top, rows = share.max(1)
        answers = torch.bincount(rows, minlength=share.shape[1]).double() / max(1, len(rows))
        told = {"answers": _shares(answers, table), "confidence": round(top.mean().item(), 4)}
        if name in base:
            told["distance"] = variation(_shares(share.mean(0), table), base[name])
        found[name] = told
    return found


def shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Answers counted by class as shares of their sum, 0..1, the largest first; the very small ones are left out."""
    whole = sum(counts.values())
    found = {name: round(count / whole, 4) for name, count in counts.items() if count > FEW * whole}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _shares(values: Tensor, table: ClassTable) -> dict[str, float]:
    named = zip(table.names, values.tolist(), strict=False)
    return {name: round(value, 4) for name, value in sorted(named, key=lambda pair: -pair[1]) if value >= LEAST}


def variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Total variation of two distributions given by their shares, 0..1."""
    return round(0.5 * sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in sorted({*a, *b})), 4)


def from_peak(history: Sequence[Mapping[str, float]], classes: Sequence[str]) -> dict[str, float]:
    """Class -> how many points its score lies below its best so far, for the classes that lost some.

    Args:
        history: class -> score, at every moment up to now.
    """
    lost = {c: max(moment.get(c, 0.0) for moment in history) - history[-1].get(c, 0.0) for c in classes}
    return {c: points for c, points in lost.items() if points > 0}
