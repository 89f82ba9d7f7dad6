"""The outcome of each group in words, learned, forgot, retained, and how a phase ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.lazy import Module
from common.record import NOTHING
from common.report.runs import RunRecord

intervals = Module("common.evaluation.intervals")

LEARNED, PARTLY = 0.8, 0.2  # of the score that the retained classes started with
FORGOTTEN, REMEMBERED = 0.1, 0.7  # of the score before forgetting
RETAINED, DAMAGED = 3.0, 10.0  # points lost
SPILLED = 0.5  # total variation of the answers on forgotten items to the base's own without the class
PRETRAIN = "pretrain"  # the plan of a run that makes a base model
FROM_PEAK = 10.0  # points below the best score so far
RULES = (
    "Learned: at least 80 % of the level at which the retained classes began (partly: at least 20 %). Forgot: at most "
    "10 % of the earlier score is left (partly: at most 70 %). Retained: at most 3 points lost (mostly: at most 10). "
    "Warnings: forgotten items get other answers than the base gives without their class (total variation above 0.5) or, "
    "where that is not measured, more than half of them are called one other class; or a class that is to be known is more than 10 points below its best."
)


@dataclass(frozen=True)
class Verdict:
    """One group's outcome.

    word:  "Learned", "Partly forgot", "Retained", ...
    grade: "good", "fair" or "bad": how far the aim was reached; "open" where it cannot be told yet, "told" where there was
        no aim.
    path:  scores in order of time, each with the moment it belongs to.
    interval: the 95 % interval of the last score, 0..100, and the number of test items behind it; None where the score
        is no share of items.
    warning: what a score does not tell: where forgotten items went, what was known better before; "" where all is well.
    """

    group: str
    role: str
    word: str
    grade: str
    path: tuple[tuple[str, float], ...]
    classes: tuple[str, ...]
    warning: str = ""
    interval: tuple[float, float, int] | None = None


def verdicts(run: RunRecord) -> list[Verdict]:
    """The outcome of every group of the plan, as far as the run has come."""
    found = (_verdict(run, group) for group in run.groups)
    return [replace(one, interval=_interval(run, one)) for one in found]


def _interval(run: RunRecord, one: Verdict) -> tuple[float, float, int] | None:
    count = next((line["weight"] for line in run.scored if line["group"] == one.group and line.get("weight")), 0)
    if not (one.path and count and run.config.get("counted")):
        return None
    found = intervals.clopper_pearson(round(one.path[-1][1] * count / 100), count)
    return 100 * found.low, 100 * found.high, count


def _verdict(run: RunRecord, group: str) -> Verdict:
    role, classes = run.role(group), tuple(map(str, run.groups[group]))
    own = [p.index for p in run.phases if group in p.groups]
    last = len(run.moments) - 1
    shown = sorted({0, last, *(i for i in own if 0 < i <= last), *(i - 1 for i in own if 1 < i <= last)})
    moments = [run.moments[i] for i in shown if 0 <= i <= last]
    path = [(m.title, m.scores[group]) for m in moments if group in m.scores]
    if last < 1 or not path or any(i > last for i in own):
        word = {"learn": "To be learned", "forget": "To be forgotten"}.get(role, "To be retained")
        return Verdict(group, role, word, "open", tuple(path), classes)
    after = path[-1][1]
    if run.plan == PRETRAIN:
        return Verdict(group, role, "Trained", "told", tuple(path), classes)
    if role == "learn":
        word, grade = _learned(after, _level(run, group))
    elif role == "forget":
        start = run.moments[own[-1] - 1].scores.get(group, 0.0)
        word, grade = _forgot(after, max(path[0][1], start))
    else:
        word, grade = _kept(path[0][1] - after)
    return Verdict(group, role, word, grade, tuple(path), classes, _warning(run, group, classes))


def _warning(run: RunRecord, group: str, classes: Sequence[str]) -> str:
    """One sentence per class that is answered strangely or has lost much, the worst first, at most two."""
    told = []
    for name, found in run.latest("spill").items():
        distance, answers = found.get("distance", 0.0), found["answers"]
        if name in classes and distance > SPILLED and answers:
            top, share = max(answers.items(), key=lambda pair: pair[1])
            text = f"{100 * share:.0f} % of {name} is now called {top}, with confidence {found['confidence']:.2f}."
            told.append((distance, text))
    if len(run.moments) > 1 and run.role(group) == "forget":
        for name in (c for c in classes if c not in run.latest("spill")):
            top, share = next(((a, s) for a, s in run.answers(-1).get(name, {}).items() if a != NOTHING), ("", 0.0))
            if top != name and share > SPILLED:
                told.append((share, f"{100 * share:.0f} % of the {run.answered} of {name} are now called {top}."))
    for name, points in run.latest("from_peak").items():
        if name in classes and points > FROM_PEAK:
            told.append((points / 100, f"{name} is {points:.0f} points below its best."))
    return " ".join(text for _, text in sorted(told, reverse=True)[:2])


def _level(run: RunRecord, group: str) -> float:
    """What a well-known class scores: the retained groups before training; 100 where there are none."""
    before = run.moments[0]
    known = [g for g in run.groups if g != group and run.standing(g, 1) != "learn" and before.scores.get(g, 0) > 0]
    return run.pooled(known, before) or 100.0


def _learned(after: float, level: float) -> tuple[str, str]:
    if after >= LEARNED * level:
        return "Learned", "good"
    return ("Partly learned", "fair") if after >= PARTLY * level else ("Not learned", "bad")


def _forgot(after: float, before: float) -> tuple[str, str]:
    if before <= 0:
        return "Never known", "open"
    if after <= FORGOTTEN * before:
        return "Forgot", "good"
    return ("Partly forgot", "fair") if after <= REMEMBERED * before else ("Still knows", "bad")


def _kept(lost: float) -> tuple[str, str]:
    if lost <= RETAINED:
        return "Retained", "good"
    return ("Mostly retained", "fair") if lost <= DAMAGED else ("Damaged", "bad")


def ended(told: Mapping[str, Any]) -> str:
    """How a phase that could settle ended, in words."""
    if not told["settled"]:
        return f"did not settle within its limit of {told['limit']} steps"
    share = f"; forgotten classes keep {100 * told['share']:.1f} % of held-out answers" if "share" in told else ""
    return f"settled: it ended after {told['steps']} of at most {told['limit']} steps{share}"
