"""What a run's scores say about its plan: forgetting per phase, and the measures of continual learning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.evaluation import continual
from common.evaluation.scores import drop, h_mean
from common.plan import Plan, standing

History = Sequence[Mapping[str, float]]  # group -> score; [0] before training, [i] after phase i


Weights = Mapping[str, int]  # group -> what its score counts: test items, or classes for a mean over classes


def pooled(weights: Weights, groups: Sequence[str], scores: Mapping[str, float]) -> float | None:
    """One score of several groups, weighted; None where none of them has a score."""
    known = [g for g in groups if g in scores]
    count = sum(weights[g] for g in known)
    return sum(scores[g] * weights[g] for g in known) / count if count else None


def weights_of(groups: Mapping[str, Sequence[str]], metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The weights of groups by the lines of metrics.jsonl; the number of classes where a record does not tell."""
    told = {line["group"]: line["weight"] for line in metrics if line.get("weight")}
    return {group: told.get(group, len(classes)) for group, classes in groups.items()}


def _pooled(weights: Weights, groups: Sequence[str], scores: Mapping[str, float]) -> float:
    found = pooled(weights, groups, scores)
    assert found is not None, "every group of a plan is scored at every moment"
    return found


def groups_of(groups: Mapping[str, Sequence[str]], classes: Iterable[str]) -> list[str]:
    """The groups that are made of these classes."""
    chosen = set(classes)
    return [name for name, members in groups.items() if members and chosen.issuperset(members)]


def forget_measures(plan: Plan, history: History, index: int, weights: Weights | None = None) -> dict[str, float]:
    """The published quantities of forget phase `index`, in points; {} for a learn phase.

    forget:  Acc_f, the classes forgotten in this phase.       drop: by how much they fell since before the run.
    retain:  Acc_r, all classes that are kept (and, in "retain_all", those without training data).
    old:     Acc_o, the classes forgotten by earlier phases.   missing: Acc_m, those without training data.
    h_mean:  of drop and retain (retain_all where classes are missing); h_mean_phase: with the drop since the
             beginning of this phase, as the published code logs it.

    Source: GS-LoRA, arXiv:2501.09705, section 5 and tables 2-5.
    """
    phase, now, weights = plan.phases[index - 1], history[index], weights or weights_of(plan.groups, [])
    if phase.action != "forget":
        return {}
    kept = groups_of(plan.groups, phase.keep)
    before, start, forgotten = (_pooled(weights, phase.groups, s) for s in (history[0], history[index - 1], now))
    fall, retain = drop(before, forgotten), pooled(weights, kept, now)
    found = {"forget": forgotten, "retain": retain, "drop": fall}
    old = [g for g in standing(plan.phases[: index - 1], "forget") if g not in phase.groups]
    found |= {"old": pooled(weights, old, now), "missing": pooled(weights, plan.missing, now)}
    if plan.missing:
        retain = found["retain_all"] = pooled(weights, [*kept, *plan.missing], now)
    if retain is not None:
        found |= {"h_mean": h_mean(retain, fall), "h_mean_phase": h_mean(retain, drop(start, forgotten))}
    return {name: value for name, value in found.items() if value is not None}


def learn_measures(plan: Plan, history: History, index: int, weights: Weights | None = None) -> dict[str, float]:
    """LibContinual's measures over the tasks learned so far and never unlearned, in points; {} below two tasks.

    A task is a group that a phase learned; the first one is all that the model knew before.
    """
    weights = weights or weights_of(plan.groups, [])
    gone = {*standing(plan.phases[:index], "forget"), *plan.missing}
    first = [g for g in plan.groups if g not in plan.learned_groups and g not in gone]
    moments: list[tuple[int, list[str]]] = [(0, first)] if first else []
    for phase in plan.phases[:index]:
        own = [g for g in phase.groups if g not in gone]
        gone |= set(own)  # a group that is learned again is no second task
        if phase.action == "learn" and own:
            moments.append((phase.index, own))
    if len(moments) < 2 or not any(i for i, _ in moments):
        return {}
    table = [[_pooled(weights, groups, history[i]) for _, groups in moments] for i, _ in moments[:-1]]
    table.append([_pooled(weights, groups, history[index]) for _, groups in moments])
    sizes = [sum(weights[g] for g in groups) for _, groups in moments]
    return {
        "last": continual.last_accuracy(table, sizes),
        "average": continual.average_accuracy(table, sizes),
        "forgetting": continual.forgetting(table),
        "backward_transfer": continual.backward_transfer(table),
    }


def measures(plan: Plan, history: History, index: int, weights: Weights | None = None) -> dict[str, float]:
    """All that can be said after phase `index`: of its forgetting, and of everything learned so far.

    weights: what a group's score counts; by default the number of its classes.
    """
    return forget_measures(plan, history, index, weights) | learn_measures(plan, history, index, weights)


def history_of(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The scores before training and at the end of every phase, from the lines of metrics.jsonl."""
    found: dict[int, dict[str, float]] = {}
    for line in metrics:
        if line.get("end") and "score" in line:
            found.setdefault(line["phase"], {})[line["group"]] = line["score"]
    return [found[i] for i in sorted(found)]


def class_history_of(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Class -> score, before training and at the end of every phase, from the lines of metrics.jsonl."""
    found: dict[int, dict[str, float]] = {}
    for line in metrics:
        if line.get("end") and "per_class" in line:
            found.setdefault(line["phase"], {}).update(line["per_class"])
    return [found[i] for i in sorted(found)]
