"""The forgetting experiments on COCO under the names of their published flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.knobs import Checked, knob
from common.plan import Plan
from common.plan_builders import build
from common.plan_file import PlanConfig


@dataclass
class ForgettingConfig(Checked):
    """Forgetting classes in a seeded order (instead of --plan or --order)."""

    num_of_first_cls: int = knob(0, "classes retained by the first task; above 0 these four flags make the plan")
    cls_per_phase: int = knob(0, "classes forgotten per task; 0: all but the first")
    num_tasks: int = knob(1, "tasks; 1 is single-step forgetting", least=1)
    seed_cls: int = knob(123, "seed of the class order (numpy's legacy shuffle of the ids)", least=0, most=2**32 - 1)


def forgetting_plan(config: ForgettingConfig, other: PlanConfig, known: Sequence[str]) -> Plan | None:
    """The plan of these flags over the `known` classes in the order of their ids; None where they are not used.

    Raises:
        UserError: a plan was named as well, or the numbers do not fit the classes.

    Source: CL-DETR, CVPR 2023, and GS-LoRA's experiments on it (arXiv:2501.09705): 80 classes of COCO, seed 123.
    """
    if not config.num_of_first_cls:
        return None
    if other.plan or other.learn or other.forget:
        raise UserError("`--num-of-first-cls` makes the plan; leave out --plan, --learn and --forget.")
    per_task = config.cls_per_phase or max(1, len(known) - config.num_of_first_cls)
    name = f"forget-{config.num_of_first_cls}-{per_task}x{config.num_tasks}"
    values = {
        "build": "continual_forgetting",
        "name": name,
        "sort": False,
        "generator": "numpy",
        "seed": config.seed_cls,
    }
    numbers = {"first": config.num_of_first_cls, "per_task": per_task, "tasks": config.num_tasks}
    return build(values | numbers, known, "--num-of-first-cls")
