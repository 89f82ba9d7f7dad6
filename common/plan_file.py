"""Plans from flags and from YAML files.

`python -m common.plan_file PLAN.yaml NAMES` prints a plan's groups, NAMES being a,b,c or @file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from common import cli, plan_builders
from common.config import read_yaml
from common.errors import UserError
from common.knobs import knob
from common.plan import ACTIONS, Plan, check_order, make_plan
from common.schema import typed
from common.splits import groups_from_flags, read_list, resolve, shorten


@dataclass
class PlanConfig:
    """The plan: what is learned, forgotten and retained, and in which order."""

    order: str = knob(
        "",
        "fltf (learn, then forget), fftl, lfl, flf, learn, forget; default: forget where only --forget "
        "is given, learn where only --learn is, else fltf",
    )
    plan: str = knob("", "YAML file with groups and phases, instead of an order")
    learn: str = knob("", "classes to learn: names or indices, comma separated, or @file")
    forget: str = knob("", "classes to forget, likewise")
    retain: str = knob("", "classes to retain; default all others that the model knows")
    keep_until_forgotten: bool = knob(
        True, "retain classes that a later phase forgets until then (published: leave them alone)"
    )
    with_references: bool = knob(
        False, "also run the plan without what is unlearned, and without unlearning, and compare (--plan)"
    )

    def chosen_order(self) -> str:
        """The order as given, or what the named groups imply. Raises UserError for an unknown order, or no class at all."""
        if not (self.order or self.plan or self.learn or self.forget):
            raise UserError(
                "what shall change? Name classes with --learn a,b or --forget c,d, or a YAML file with --plan."
            )
        for name in ("learn", "forget", "retain"):
            named = getattr(self, name)
            if isinstance(named, str) and named and not read_list(named):  # Python may give lists
                raise UserError(f"--{name} {named!r} names no class; write --{name} a,b or @file.")
        one = "learn" if self.learn and not self.forget else "forget" if self.forget and not self.learn else "fltf"
        order = self.order or one
        check_order(order)
        return order


def plan_from(config: PlanConfig, base: Sequence[str], new: Sequence[str], gone: Sequence[str] = ()) -> Plan:
    """The plan that the flags ask for.

    Args:
        base: classes the pretrained model knows.
        new: classes that the training data offers beyond them.
        gone: classes of `base` that an earlier run has forgotten: retained by no default, and to be learned like new ones.

    Raises:
        UserError: unknown order or class, overlaps, an unreadable plan.
    """
    known = [c for c in base if c not in gone]
    if config.plan:
        plan = read_plan(config.plan, [*base, *new], config.keep_until_forgotten, known)
        _check_known(plan, known)
    else:
        groups = groups_from_flags(config.learn, config.forget, config.retain, base, new, gone)
        plan = make_plan(config.chosen_order(), **groups, keep_until_forgotten=config.keep_until_forgotten)
    return replace(plan, gone=tuple(gone))


Scalar = str | int | float | bool
FORM = "a plan needs `groups` (name: classes) and `phases` (a list of `learn: group` or `forget: group`)"


class PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    """A plan's YAML file without `build`."""

    groups: dict[Scalar, Scalar | list[Scalar] | None]
    phases: list[Any]
    name: Scalar | None = None
    keep_until_forgotten: bool | None = None
    missing: list[Scalar] | None = None


def _check_known(plan: Plan, base: Sequence[str]) -> None:
    """Raises UserError for a plan that learns what the model knows, or begins with what it does not know."""
    known = [c for c in plan.new_classes if c in base]
    if known:
        raise UserError(f"plan {plan.name!r} learns class {known[0]!r}, which the model knows already.")
    for group, classes in plan.groups.items():
        strange = [c for c in classes if c not in base and group not in plan.learned_groups]
        if strange:
            raise UserError(
                f"plan {plan.name!r}: the model does not know class {strange[0]!r} of group {group!r}; learn it first, or "
                f"leave it out. It knows: {shorten(base)}."
            )


def read_plan(
    path: str | Path, available: Sequence[str], keep_until_forgotten: bool = True, known: Sequence[str] | None = None
) -> Plan:
    """The plan of a YAML file with `groups` and `phases`, or with `build` and its settings (see plan_builders).

    A group given as `rest` holds all classes left over.

    Args:
        available: every class name there is, base and new, in order.
        keep_until_forgotten: of the plan, where the file does not say it.
        known: the base classes, of which `rest` consists unless it is learned; default all.

    Raises:
        UserError: the file is no plan, or names something unknown.
    """
    data = read_yaml(path)
    if "build" in data:
        return plan_builders.build(data, available, str(path))
    found: PlanFile = typed(data, PlanFile, str(path), FORM)
    patient = keep_until_forgotten if found.keep_until_forgotten is None else found.keep_until_forgotten
    steps = tuple(_step(entry, path) for entry in found.phases)
    groups: dict[str, tuple[str, ...]] = {}
    for name, classes in found.groups.items():
        if classes != "rest":
            listed = classes if isinstance(classes, list | str) else [] if classes is None else [classes]
            groups[str(name)] = tuple(resolve(listed, available, f"group {name!r} of {path}"))
    taken = {c for classes in groups.values() for c in classes}
    first = {name: action for action, names in reversed(steps) for name in names}
    for name, classes in found.groups.items():
        if classes == "rest":
            offered = available if known is None or first.get(str(name)) == "learn" else known
            groups[str(name)] = tuple(c for c in offered if c not in taken)
            taken.update(groups[str(name)])
    groups = {str(name): groups[str(name)] for name in found.groups}
    missing = tuple(map(str, found.missing or ()))
    return Plan(Path(path).stem if found.name is None else str(found.name), groups, steps, patient, missing)


def _step(entry: Any, path: str | Path) -> tuple[str, tuple[str, ...]]:
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in ACTIONS:
        raise UserError(f"{path}: a phase is `learn: group` or `forget: group`, got {entry!r}.")
    action, names = next(iter(entry.items()))
    names = names if isinstance(names, list) else [names]
    return action, tuple(str(n) for n in names)


def main(argv: Sequence[str]) -> None:
    """Prints the groups and phases of a plan file."""
    if len(argv) != 2:
        raise UserError("usage: python -m common.plan_file PLAN.yaml a,b,c (or @file with one class per line)")
    plan = read_plan(argv[0], read_list(argv[1]))
    for group, classes in plan.groups.items():
        print(f"{group}: {','.join(classes)}")
    for phase in plan.phases:
        print(f"phase {phase.title}: {len(phase.target)} classes, {len(phase.keep)} kept")


if __name__ == "__main__":
    sys.exit(cli.main(main))
