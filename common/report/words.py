"""A run in plain English: its title, and one paragraph for readers who have not read anything else."""

from __future__ import annotations

from collections.abc import Sequence

from common.record import NOTHING
from common.report.flow import moves
from common.report.runs import RunRecord
from common.report.verdict import FROM_PEAK, PRETRAIN, SPILLED

NAMED = 4  # classes that are named; of more, their number is told
MANY = 4  # phases that are told one by one
ALIKE = (
    0.25  # total variation up to which two mean answers are much the same: models of two seeds differ by about so much
)
ROLES = {"learn": "what was to be learned", "forget": "what was to be forgotten", "retain": "the rest"}


def title(run: RunRecord) -> str:
    """'Knowledge swapping: learn 6 and 7, then forget 0 and 1', or that a base model was trained."""
    if run.plan == PRETRAIN:
        return f"A base model trained on {_classes(run, [c for group in run.groups.values() for c in group])}"
    return f"Knowledge swapping: {_steps(run)}"


def paragraph(run: RunRecord) -> str:
    """What was asked, what came out, where the forgotten classes went, and how far that can be trusted."""
    if len(run.moments) < 2:
        return ""
    told = (_asked(run), _measured(run), _outcomes(run), _went(run), _lost(run), _trust(run))
    return " ".join(filter(None, told))


def orders(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """What the names of the plans mean: ('fltf', 'learn 6 and 7, then forget 0 and 1')."""
    found = {(run.plan, _steps(run)) for run in runs}
    return sorted(found) if len({name for name, _ in found}) == len(found) else []


def _steps(run: RunRecord) -> str:
    if len(run.phases) > MANY:
        return f"{len(run.phases)} phases of learning and forgetting"
    return ", then ".join(f"{phase.action} {_classes(run, phase.target)}" for phase in run.phases)


def _classes(run: RunRecord, classes: Sequence[str]) -> str:
    """'cat and dog'; of many '20 classes'."""
    if len(classes) > NAMED:
        return f"{len(classes)} classes"
    names = [run.titled(name) for name in classes]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _asked(run: RunRecord) -> str:
    if run.plan == PRETRAIN:
        return "A model was trained that later runs start from."
    kept = [c for group, members in run.groups.items() if run.role(group) == "retain" for c in members]
    aside = f", and to keep {_classes(run, kept)}" if kept else ""
    return f"A trained model was told to {_steps(run)}{aside}."


def _measured(run: RunRecord) -> str:
    about = f": {run.meaning}" if run.meaning else ""
    return f"Scores are {run.metric_label.replace(' (%)', ' in percent')}{about}."


def _outcomes(run: RunRecord) -> str:
    """'The score of what was to be learned rose from 0.0 to 97.2, of what was to be forgotten it fell from ...'"""
    told = []
    for role, what in ROLES.items():
        groups = [g for g in run.groups if run.role(g) == role]
        before, after = (run.pooled(groups, run.moments[i]) if groups else None for i in (0, -1))
        if before is not None and after is not None:
            verb = (
                "stayed at"
                if abs(after - before) < 0.05
                else f"{'rose' if after > before else 'fell'} from {before:.1f} to"
            )
            told.append(f"{what} {verb} {after:.1f}")
    if not told:
        return ""
    text = ", ".join(told[:-1]) + (" and " if told[1:] else "") + told[-1]
    return f"{text[:1].upper()}{text[1:]}."


def _went(run: RunRecord) -> str:
    """Where most of the answers on forgotten classes went."""
    gone = {c for group, members in run.groups.items() if run.role(group) == "forget" for c in members}
    found = [move for move in moves(run) if move.name in gone]
    if not gone or not run.answers(-1):
        return ""
    named = [move for move in found if move.answer != NOTHING and move.after >= 0.5]
    if named:
        spill = run.latest("spill")
        top = max(named, key=lambda move: (spill.get(move.name, {}).get("distance", 1.0), move.after))
        told = f"{100 * top.after:.0f} % of the {run.answered} of {run.titled(top.name)} are now called {run.titled(top.answer)}"
        distance = spill.get(top.name, {}).get("distance", 1.0)
        if distance <= ALIKE:
            return f"{told}, much as the base model answers without that class (distance {distance:.2f} of 1)."
        if distance <= SPILLED:
            return f"{told}, more than the base model would without that class (distance {distance:.2f} of 1)."
        return f"{told}: such a class has moved onto another one, which is not the same as being unknown."
    if found and all(move.answer == NOTHING for move in found):
        return "What was forgotten is mostly not found any more."
    return "No forgotten class went to one other class for more than half of its answers."


def _lost(run: RunRecord) -> str:
    lost = {name: points for name, points in run.latest("from_peak").items() if points > FROM_PEAK}
    if not lost:
        return ""
    worst = max(lost, key=lambda name: lost[name])
    return f"A class that should be known, {run.titled(worst)}, ends {lost[worst]:.0f} points below its best."


def _trust(run: RunRecord) -> str:
    if run.plan == PRETRAIN:
        return ""
    seed = run.train.get("seed")
    one = f"This is one run (seed {seed}), so that differences of a few points mean little" if seed is not None else ""
    if not any(run.role(group) == "forget" for group in run.groups):
        return f"{one}." if one else ""
    hidden = "a low score says what the model answers, not that nothing is left of a class inside it"
    return f"{one}; {hidden}." if one else f"{hidden[:1].upper()}{hidden[1:]}."
