"""The outcome of each group in words: learned, forgot, retained."""

from __future__ import annotations

from dataclasses import dataclass

from common.report.runs import RunRecord

LEARNED, PARTLY = 0.8, 0.2  # of the score that the retained classes started with
FORGOTTEN, REMEMBERED = 0.1, 0.7  # of the score before forgetting
RETAINED, DAMAGED = 3.0, 10.0  # points lost
RULES = (
    "Learned: at least 80 % of the level at which the retained classes began (partly: at least 20 %). Forgot: at most "
    "10 % of the earlier score is left (partly: at most 70 %). Retained: at most 3 points lost (mostly: at most 10)."
)


@dataclass(frozen=True)
class Verdict:
    """One group's outcome.

    word:  "Learned", "Partly forgot", "Retained", ...
    grade: "good", "fair" or "bad": how far the aim was reached; "open" where it cannot be told yet.
    path:  scores in order of time, each with the moment it belongs to.
    """

    group: str
    role: str
    word: str
    grade: str
    path: tuple[tuple[str, float], ...]
    classes: tuple[str, ...]


def verdicts(run: RunRecord) -> list[Verdict]:
    """The outcome of every group of the plan, as far as the run has come."""
    return [_verdict(run, group) for group in run.groups]


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
    if role == "learn":
        word, grade = _learned(after, _level(run, group))
    elif role == "forget":
        start = run.moments[own[-1] - 1].scores.get(group, 0.0)
        word, grade = _forgot(after, max(path[0][1], start))
    else:
        word, grade = _kept(path[0][1] - after)
    return Verdict(group, role, word, grade, tuple(path), classes)


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
