"""Plans from flags and from YAML files.

`python -m common.plan_file PLAN.yaml NAMES` prints a plan's groups, NAMES being a,b,c or @file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cli, plan_builders
from common.config import read_yaml
from common.errors import UserError
from common.knobs import knob
from common.plan import ACTIONS, Plan, check_order, make_plan
from common.splits import groups_from_flags, read_list, resolve


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
        one = "learn" if self.learn and not self.forget else "forget" if self.forget and not self.learn else "fltf"
        order = self.order or one
        check_order(order)
        return order


def plan_from(config: PlanConfig, base: Sequence[str], new: Sequence[str]) -> Plan:
    """The plan that the flags ask for.

    Args:
        base: classes the pretrained model knows.
        new: classes that the training data offers beyond them.

    Raises:
        UserError: unknown order or class, overlaps, an unreadable plan.
    """
    if config.plan:
        return read_plan(config.plan, [*base, *new], config.keep_until_forgotten)
    groups = groups_from_flags(config.learn, config.forget, config.retain, base, new)
    return make_plan(config.chosen_order(), **groups, keep_until_forgotten=config.keep_until_forgotten)


def read_plan(path: str | Path, available: Sequence[str], keep_until_forgotten: bool = True) -> Plan:
    """The plan of a YAML file with `groups` and `phases`, or with `build` and its settings (see plan_builders).

    A group given as `rest` holds all classes left over.

    Args:
        available: every class name there is, base and new, in order.
        keep_until_forgotten: of the plan, where the file does not say it.

    Raises:
        UserError: the file is no plan, or names something unknown.
    """
    data = read_yaml(path)
    if "build" in data:
        return plan_builders.build(data, available, str(path))
    extra = set(data) - {"name", "groups", "phases", "keep_until_forgotten", "missing"}
    if extra or not isinstance(data.get("groups"), dict) or not isinstance(data.get("phases"), list):
        raise UserError(
            f"{path} is no plan: it needs `groups` (name: classes) and `phases` (a list of `learn: group` or "
            f"`forget: group`)" + (f"; unknown: {', '.join(map(str, sorted(extra)))}." if extra else ".")
        )
    patient = data.get("keep_until_forgotten", keep_until_forgotten)
    if not isinstance(patient, bool):
        raise UserError(f"{path}: keep_until_forgotten is true or false, got {patient!r}.")
    groups: dict[str, tuple[str, ...]] = {}
    for name, classes in data["groups"].items():
        if classes != "rest":
            listed = classes if isinstance(classes, list | str) else [] if classes is None else [classes]
            groups[str(name)] = tuple(resolve(listed, available, f"group {name!r} of {path}"))
    taken = {c for classes in groups.values() for c in classes}
    for name, classes in data["groups"].items():
        if classes == "rest":
            groups[str(name)] = tuple(c for c in available if c not in taken)
            taken.update(groups[str(name)])
    groups = {str(name): groups[str(name)] for name in data["groups"]}
    steps = tuple(_step(entry, path) for entry in data["phases"])
    missing = tuple(str(name) for name in data.get("missing") or ())
    return Plan(str(data.get("name", Path(path).stem)), groups, steps, patient, missing)


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
