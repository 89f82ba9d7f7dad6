"""Groups of classes, phases, the orders, and the keep rule.

A run is a plan: a list of phases, each of which learns or forgets named groups of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import UserError
from common.names import check_names

ORDERS = {
    "fltf": ("learn", "forget"),
    "fftl": ("forget", "learn"),
    "lfl": ("learn", "forget", "learn"),
    "flf": ("forget", "learn", "forget"),
    "learn": ("learn",),
    "forget": ("forget",),
}
ACTIONS = ("learn", "forget")


@dataclass(frozen=True)
class Phase:
    """One step of a plan.

    index:  1-based; phase 0 in the records is the state before training.
    action: "learn" or "forget".
    groups: names of the groups that the phase trains.
    target: their classes.
    keep:   classes that the phase must not damage (computed, see `Plan`).
    gone:   classes that earlier phases have forgotten, and that this one does not learn again.
    unknown: classes that no phase up to now has learned, those of this phase included where it learns.
    later:  classes that are known and neither trained nor kept: a later phase forgets them.
    """

    index: int
    action: str
    groups: tuple[str, ...]
    target: tuple[str, ...]
    keep: tuple[str, ...]
    gone: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """'1 learn' and the like, for tables and axes."""
        return f"{self.index} {self.action}" + (f" {'+'.join(self.groups)}" if self.groups != (self.action,) else "")


@dataclass(frozen=True)
class Plan:
    """Named groups of classes and the phases that learn or forget them.

    groups: group name -> class names; groups that no phase names are retained throughout.
    steps:  (action, group names) per phase.
    keep_until_forgotten: a class to be forgotten in a later phase is retained until then, so that no phase but
        its own forgets it; otherwise it is left alone (Knowledge Swapping as published, where the learn phase
        never sees the forget set).
    missing: retained groups of which there is no training data: they are scored, but in no keep set.
    gone: classes that the base model has forgotten in an earlier run, and that are in no group or are learned again.
    """

    name: str
    groups: Mapping[str, tuple[str, ...]]
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    keep_until_forgotten: bool = True
    missing: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_names("plan", [self.name])
        check_names("group", self.groups)
        check_names("class", (c for classes in self.groups.values() for c in classes))
        empty = [name for name, classes in self.groups.items() if not classes]
        if empty:
            raise UserError(f"group {empty[0]!r} of plan {self.name!r} holds no class; name some or leave it out.")
        _check_disjoint(self.groups)
        for name in self.missing:
            if name not in self.groups or any(name in names for _, names in self.steps):
                raise UserError(f"plan {self.name!r}: missing group {name!r} must be a group that no phase trains.")
        if not self.steps:
            raise UserError(f"plan {self.name!r} has no phases; list at least one 'learn:' or 'forget:'.")
        known: set[str] = {n for n in self.groups if n not in self.learned_groups}
        for action, names in self.steps:
            if not names or len(set(names)) < len(names):
                raise UserError(f"plan {self.name!r}: a phase names each of its groups once, got {list(names)}.")
            for name in names:
                if name not in self.groups:
                    raise UserError(f"plan {self.name!r} names group {name!r}; it has: {', '.join(self.groups)}.")
                if action == "forget" and name not in known:
                    raise UserError(f"plan {self.name!r} forgets group {name!r} before it is learned.")
            known = known | set(names)

    @property
    def learned_groups(self) -> tuple[str, ...]:
        """Groups whose first phase learns them: the model does not know them at the start."""
        first: dict[str, str] = {}
        for action, names in self.steps:
            for name in names:
                first.setdefault(name, action)
        return tuple(n for n, action in first.items() if action == "learn")

    @property
    def new_classes(self) -> tuple[str, ...]:
        """Classes that need new head rows."""
        return tuple(c for name in self.learned_groups for c in self.groups[name])

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Classes that are forgotten in the end: by the last phase that trains them, or by an earlier run."""
        touched = {c for _, names in self.steps for name in names for c in self.groups[name]}
        return (*(c for c in self.gone if c not in touched), *self._classes(standing(self.phases, "forget")))

    @property
    def phases(self) -> list[Phase]:
        """The phases with their keep sets: retained, plus all learned so far, minus all forgotten so far."""
        touched = {name for _, names in self.steps for name in names}
        keep = [n for n in self.groups if n not in touched]
        if self.keep_until_forgotten:
            keep = [n for n in self.groups if n not in self.learned_groups]
        keep = [n for n in keep if n not in self.missing]
        result: list[Phase] = []
        gone: list[str] = []
        unknown = list(self.learned_groups)
        for index, (action, names) in enumerate(self.steps, 1):
            now, gone = [n for n in keep if n not in names], [n for n in gone if n not in names]
            elsewhere = {*names, *now, *gone, *unknown, *self.missing}
            sets = (names, now, gone, unknown, [n for n in self.groups if n not in elsewhere])
            result.append(Phase(index, action, names, *(self._classes(each) for each in sets)))
            if action == "learn":
                keep, unknown = now + list(names), [n for n in unknown if n not in names]
            else:
                keep, gone = now, gone + list(names)
        return result

    def _classes(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(c for name in names for c in self.groups[name])

    def record(self) -> dict[str, Any]:
        """Plain data from which `from_record` makes the same plan."""
        data = {**asdict(self), "groups": {k: list(v) for k, v in self.groups.items()}}
        for name in ("missing", "gone"):
            if not data[name]:
                del data[name]  # so that records from before it existed stay equal
        return data


def from_record(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.record` described."""
    groups = {k: tuple(v) for k, v in data["groups"].items()}
    steps = tuple((action, tuple(names)) for action, names in data["steps"])
    more = (tuple(data.get(name, ())) for name in ("missing", "gone"))
    return Plan(data["name"], groups, steps, data["keep_until_forgotten"], *more)


def standing(phases: Sequence[Phase], action: str) -> list[str]:
    """Groups whose last action in these phases was `action`."""
    last = {name: phase.action for phase in phases for name in phase.groups}
    return [name for name, own in last.items() if own == action]


def make_plan(
    order: str, learn: Sequence[str], forget: Sequence[str], retain: Sequence[str], keep_until_forgotten: bool = True
) -> Plan:
    """The plan of an order; "learn" alone retains the classes of `forget` too.

    Raises:
        UserError: unknown order, or a class in two groups.
    """
    check_order(order)
    actions = ORDERS[order]
    groups = {"learn": tuple(learn), "forget": tuple(forget), "retain": tuple(retain)}
    for action in set(actions):
        if not groups[action]:
            raise UserError(f"order {order!r} needs classes to {action}; name them with --{action}.")
    if "learn" not in actions:
        del groups["learn"]  # never shown to the model, which does not know them
    groups = {name: classes for name, classes in groups.items() if classes}
    return Plan(order, groups, tuple((action, (action,)) for action in actions), keep_until_forgotten)


def pretrain_plan(classes: Sequence[str]) -> Plan:
    """One phase that learns all classes."""
    return Plan("pretrain", {"base": tuple(classes)}, (("learn", ("base",)),))


def check_order(order: str) -> None:
    """Raises UserError for an unknown order."""
    if order not in ORDERS:
        raise UserError(f"`--order` must be one of {', '.join(ORDERS)}, got {order}.")


def _check_disjoint(groups: Mapping[str, Sequence[str]]) -> None:
    owner: dict[str, str] = {}
    for name, classes in groups.items():
        for c in classes:
            if c in owner:
                raise UserError(
                    f"class {c!r} is in both `{owner[c]}` and `{name}`; each class belongs to exactly one group."
                )
            owner[c] = name
