"""Published plans from a few numbers: continual forgetting, class-incremental learning, continual unlearning."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from common.errors import UserError
from common.plan import Plan
from common.schema import typed

Steps = list[tuple[str, tuple[str, ...]]]


def shuffled(names: Sequence[str], seed: int, generator: str = "python") -> list[str]:
    """`names` in a seeded order, the same on every machine.

    generator: "python" is `random.seed(seed); random.shuffle(...)`, GS-LoRA's class order (seed 1337); "numpy" the
        legacy `numpy.random.seed(seed)` with an in-place shuffle, CL-DETR's order of COCO ids (seed 123);
        "permutation" numpy's legacy `permutation`, the class-incremental convention (seed 1993); "none" keeps
        the order as it is.

    Raises:
        UserError: unknown generator.
    """
    result = list(names)
    if generator == "python":
        random.Random(seed).shuffle(result)
    elif generator in ("numpy", "permutation"):
        import numpy as np

        legacy = np.random.RandomState(seed)
        if generator == "numpy":
            legacy.shuffle(result)
        else:
            result = [result[i] for i in legacy.permutation(len(result))]
    elif generator != "none":
        raise UserError(f"`generator` must be python, numpy, permutation or none, got {generator}.")
    return result


def continual_forgetting(
    order: Sequence[str], name: str, *, first: int, per_task: int, tasks: int = 1, missing: int = 0, missing_at: str = "first"
) -> Plan:  # fmt: skip
    """Forgets `per_task` classes `tasks` times, from the end of the order towards its front.

    Task t forgets order[first - t per_task : first - t per_task + per_task] and retains what stands before it;
    classes behind those of task 0 are in no group.

    Args:
        first: classes retained by the first task (F).
        per_task: classes forgotten per task (P).
        missing: retained classes without training data (the "open" setting), scored in a group of their own.
        missing_at: they are the "first" of the order (published, several tasks) or the "last" of those retained
            (published, one task).

    Raises:
        UserError: the numbers do not fit the classes.

    Source: GS-LoRA, arXiv:2403.11530 and arXiv:2501.09705, section 5.
    """
    last = first - (tasks - 1) * per_task
    if tasks < 1 or per_task < 1 or last < 1 or first + per_task > len(order):
        raise UserError(
            f"{name}: {tasks} tasks of {per_task} classes after the first {first} do not fit {len(order)} classes; "
            f"first + per_task must be at most {len(order)} and first - (tasks - 1) * per_task at least 1."
        )
    if missing_at not in ("first", "last") or not 0 <= missing < last:
        raise UserError(f"{name}: `missing` must be below {last} and `missing_at` first or last.")
    start = 0 if missing_at == "first" else last - missing
    lacking = list(order[start : start + missing])
    groups = {"retain": tuple(c for c in order[:last] if c not in lacking)}
    if lacking:
        groups["missing"] = tuple(lacking)
    steps: Steps = []
    for t in range(tasks):
        begin = first - t * per_task
        own = f"forget{t + 1}" if tasks > 1 else "forget"
        groups[own] = tuple(order[begin : begin + per_task])
        steps.append(("forget", (own,)))
    return Plan(name, groups, tuple(steps), True, ("missing",) if lacking else ())


def class_incremental(
    order: Sequence[str], name: str, *, first: int, increment: int, tasks: int = 0, pretrained: bool = True
) -> Plan:
    """Learns task after task: `first` classes, then `increment` more each time.

    Args:
        tasks: number of tasks in all; 0 takes all classes (a smaller last task where they do not divide).
        pretrained: the model knows the first task already; otherwise it is the first phase.

    Raises:
        UserError: nothing is left to learn.

    Source: LUCIR, Hou et al., CVPR 2019 (50 classes, then 2, 5 or 10 per task); LibContinual's init_cls_num,
    inc_cls_num and task_num.
    """
    if first < 1 or increment < 1 or first >= len(order):
        raise UserError(f"{name}: `first` must be 1 to {len(order) - 1} and `increment` at least 1.")
    starts = [0, *range(first, len(order), increment)]
    ends = [*starts[1:], len(order)]
    pairs = list(zip(starts, ends, strict=True))[: tasks or None]
    groups = {f"task{i}": tuple(order[a:b]) for i, (a, b) in enumerate(pairs, 1)}
    learned = list(groups)[1:] if pretrained else list(groups)
    if not learned:
        raise UserError(f"{name}: one task and a pretrained model leave nothing to learn.")
    return Plan(name, groups, tuple(("learn", (group,)) for group in learned))


def continual_unlearning(
    order: Sequence[str], name: str, *, per_task: int, tasks: int, requests: Mapping[Any, Any], known: int = 0
) -> Plan:
    """Learns task after task and unlearns on request after any of them.

    Args:
        per_task: classes per task.
        requests: {after task: [tasks (numbers from 1) or class names]}. A request for a class makes it a group of
            its own, learned with its task and unlearned alone.
        known: classes at the front of the order that the pretrained model knows; they are retained.

    Raises:
        UserError: unknown task or class, or one that has not been learned yet, or was unlearned before.

    Source: CLArena, arXiv:2507.01189: `unlearning_requests: {2: [1], 4: [2], 5: [5]}`.
    """
    if per_task < 1 or tasks < 1 or known < 0 or known + per_task * tasks > len(order):
        raise UserError(f"{name}: {known} known and {tasks} tasks of {per_task} classes need {known + tasks * per_task}, "
                        f"there are {len(order)}.")  # fmt: skip
    spans = {t: order[known + (t - 1) * per_task : known + t * per_task] for t in range(1, tasks + 1)}
    wanted = {_number(after, name): [str(r) for r in _listed(asked)] for after, asked in requests.items()}
    alone = {r for asked in wanted.values() for r in asked if r in order[known:]}
    groups: dict[str, tuple[str, ...]] = {"known": tuple(order[:known])} if known else {}
    parts: dict[int, dict[str, str]] = {}  # task -> group -> the class it holds alone, or ""
    for t, span in spans.items():
        rest = tuple(c for c in span if c not in alone)
        parts[t] = ({f"task{t}": ""} if rest else {}) | {f"task{t}-{c}": c for c in span if c in alone}
        groups |= {f"task{t}": rest} if rest else {}
        groups |= {f"task{t}-{c}": (c,) for c in span if c in alone}
    steps: Steps = []
    living: list[str] = []
    for t in spans:
        steps.append(("learn", tuple(parts[t])))
        living += parts[t]
        for request in wanted.pop(t, []):
            gone = [g for g in _asked(request, parts, name) if g in living]
            if not gone:
                raise UserError(f"{name}: request {request!r} after task {t} names nothing that is known then.")
            steps.append(("forget", tuple(gone)))
            living = [g for g in living if g not in gone]
    if wanted:
        raise UserError(f"{name}: there is no task {next(iter(wanted))} to make requests after; there are {tasks}.")
    return Plan(name, groups, tuple(steps))


def _asked(request: str, parts: Mapping[int, Mapping[str, str]], name: str) -> list[str]:
    """The groups of a request: a class by name, else a task by number."""
    by_class = [g for own in parts.values() for g, c in own.items() if c and c == request]
    if by_class:
        return by_class
    if request.isdigit() and int(request) in parts:
        return list(parts[int(request)])
    raise UserError(f"{name}: request {request!r} is neither a class nor a task from 1 to {len(parts)}.")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _number(value: Any, name: str) -> int:
    if str(value).isdigit():
        return int(value)
    raise UserError(f"{name}: requests are made after a task's number, got {value!r}.")


class Order(msgspec.Struct):
    """What a plan with `build` says of the order of classes."""

    name: str | int | float | None = None
    classes: list[str | int | float | bool] | None = None
    sort: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    generator: str = "none"


BUILDERS = {f.__name__: f for f in (continual_forgetting, class_incremental, continual_unlearning)}


def build(data: Mapping[str, Any], available: Sequence[str], path: str = "the plan") -> Plan:
    """The plan that a YAML mapping with `build` describes.

    Besides the builder's own settings: `name`; `classes` (a list, default the available ones), `sort` (default
    true: by name, so that the order does not depend on which classes a model knows; false takes them as they
    come), `seed` and `generator` of the class order (default: no shuffling).

    Raises:
        UserError: unknown builder, setting or class.
    """
    settings = dict(data)
    common = typed({k: settings.pop(k) for k in Order.__struct_fields__ if k in settings}, Order, path, "mend it")
    name = str(Path(path).stem if common.name is None else common.name)
    builder = BUILDERS.get(str(settings.pop("build")))
    if builder is None:
        raise UserError(f"{path}: `build` must be one of {', '.join(BUILDERS)}, got {data['build']!r}.")
    names = [str(c) for c in common.classes or available]
    strangers = [c for c in names if c not in available]
    if strangers:
        raise UserError(f"{path}: unknown class {strangers[0]!r}; there are: {', '.join(map(str, available[:60]))}.")
    names = sorted(names) if common.sort else names
    order = shuffled(names, common.seed, common.generator)
    allowed = set(inspect.signature(builder).parameters) - {"order", "name"}
    needed = {k for k, p in inspect.signature(builder).parameters.items() if p.default is p.empty} - {"order", "name"}
    if set(settings) - allowed or needed - set(settings):
        raise UserError(f"{path}: {builder.__name__} takes {', '.join(sorted(allowed))} (needed: "
                        f"{', '.join(sorted(needed))}); got {', '.join(sorted(map(str, settings))) or 'nothing'}.")  # fmt: skip
    hints = get_type_hints(builder)
    for key, value in settings.items():
        typed(value, hints[key], f"{path}: `{key}` = {value!r}")
    return builder(order, name, **settings)
