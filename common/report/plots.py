"""The curves of a run: scores and loss terms over steps, adapters over depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from common.report.columns import outcome
from common.report.runs import RunRecord
from common.report.svg import Axes, Line, chart

HUES = {"learn": (150, 195), "forget": (8, 48), "retain": (215, 285)}  # span of the colour circle per role
DASHES = ("", "6 3", "2 3")
RUN_KEYS = ("phase", "epoch", "step")
POINTS = 240  # per curve; more cannot be told apart at this size


@dataclass(frozen=True)
class Plot:
    """A drawn chart, the legend that belongs to it, (name, hue, dash) per curve, and what a reader must know of it."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, float, str]] = ()
    note: str = ""


def hues(run: RunRecord) -> dict[str, float]:
    """A hue for every group of classes: green for learn, red for forget, blue for retain, spread within each."""
    result: dict[str, float] = {}
    for role, span in HUES.items():
        names = [g for g in run.groups if run.role(g) == role]
        result.update(zip(names, _spread(len(names), span), strict=True))
    return result


def _spread(count: int, span: tuple[float, float]) -> list[float]:
    width = span[1] - span[0]
    return [span[0] + width * i / max(1, count - 1) for i in range(count)]


def _phase_hues(run: RunRecord) -> dict[int, float]:
    result: dict[int, float] = {}
    for role in ("learn", "forget"):
        own = [p.index for p in run.phases if p.action == role]
        result.update(zip(own, _spread(len(own), HUES[role]), strict=True))
    return result


def spans(run: RunRecord) -> dict[int, tuple[float, float]]:
    """First and last optimizer step of each phase that has begun, counted over the whole run."""
    length: dict[int, int] = {}
    for lines, extra in ((run.scored, 0), (run.steps, 1)):
        for line in lines:
            length[line["phase"]] = max(length.get(line["phase"], 0), line["step"] + extra)
    result, start = {}, 0.0
    for phase in run.phases:
        if phase.index not in length:
            break
        result[phase.index] = (start, start + length[phase.index])
        start += length[phase.index]
    return result


def _bands(run: RunRecord) -> list[tuple[float, float, str]]:
    titles = {p.index: p.title for p in run.phases}
    return [(start, end, titles[index]) for index, (start, end) in spans(run).items()]


def scores(run: RunRecord) -> Plot | None:
    """Score of each group over the optimizer steps: lines of a sample of test items, dots of all of them."""
    starts = {0: 0.0, **{index: start for index, (start, _) in spans(run).items()}}
    colour, lines, legend = hues(run), [], []
    for group in run.groups:
        points = [
            (starts[line["phase"]] + line["step"], finite(line["score"]))
            for line in run.scored
            if line["group"] == group and line["phase"] in starts
        ]
        sampled = _sampled(run, group, starts)
        if sampled or 0 < len(points) <= len(starts):  # what lies between scores of all items is not known from them
            points = [point for x, y in points for point in ((x, y), (x, None))]
        if points:
            dash = _dash(run, group)
            lines += [Line(group, colour[group], sampled, dash=dash)] if sampled else []
            lines.append(Line(group, colour[group], points, marks=True, dash=dash))
            legend.append((group, colour[group], dash))
    if not lines or len(starts) == 1:
        return None
    axes = Axes("optimizer step", run.metric_label, (0, 100), _bands(run), title="score of each group over the steps")
    return Plot("Scores over steps", chart(lines, axes), legend, _sample_note(run))


def _sampled(run: RunRecord, group: str, starts: Mapping[int, float]) -> list[tuple[float, float | None]]:
    """The scores of the sample, each phase a curve of its own."""
    points: list[tuple[float, float | None]] = []
    for line in run.sampled:
        if line["phase"] in starts and group in line["sample"]:
            x = starts[line["phase"]] + line["step"]
            points += [(x, None)] if line["step"] == 0 else []
            points.append((x, finite(line["sample"][group])))
    return points


def _sample_note(run: RunRecord) -> str:
    if not run.sampled:
        return "Dots: all test items. What lies between them was not scored."
    sizes = sorted({line["items"] for line in run.sampled})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"Lines: a sample of at most {size} test pictures of each group, scored on the way. Dots: all test pictures."


def fronts(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Plot]:
    """Runs against each other, a dot each: what they forgot against what they retained, and against what they learned.

    The grey line joins the runs that none of the others betters in both (the Pareto front).

    Args:
        names: of the runs; runs of one name have one colour.
    """
    called = list(dict.fromkeys(names))
    found = []
    for role, what in (("retain", "retained"), ("learn", "learned")):
        dots = [(name, outcome("forget")(run), outcome(role)(run)) for name, run in zip(names, runs, strict=True)]
        known = [(name, x, y) for name, x, y in dots if x is not None and y is not None]
        if len(known) < 2:
            continue
        lines = [Line("Pareto front", -1, _front([(x, y) for _, x, y in known]), dash="2 3")]
        legend = []
        tags: dict[tuple[float, float], list[str]] = {}  # runs in one place share a text
        for name, x, y in known:
            tags.setdefault((x, y), []).append(str(called.index(name) + 1))
        for number, name in enumerate(called, 1):
            hue = 360 * (number - 1) / len(called) + 10
            own = [Line(name, hue, [(x, y)], True, tag=", ".join(dict.fromkeys(tags[x, y])))
                   for n, x, y in known if n == name]  # fmt: skip
            lines += own
            legend += [(f"{number} {name}", hue, "dot")] if own else []
        label = runs[0].metric_label
        low = max(0.0, 10 * math.floor(min(y for _, _, y in known) / 10) - 10)
        high = min(100.0, 10 * math.ceil(max(x for _, x, _ in known) / 10) + 10)
        axes = Axes(f"forgotten: {label}, lower is better", f"{what}: higher is better", (low, 100), width=460, height=300,
                    x_range=(0, high), title=f"{what} against forgotten, a dot per run")  # fmt: skip
        found.append(Plot(f"{what.capitalize()} against forgotten", chart(lines, axes), legend))
    return found


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float | None]]:
    """Corners of the staircase below and right of which every point is bettered: small x and large y are good."""
    corners: list[tuple[float, float | None]] = []
    best = -math.inf
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            corners += [(x, best)] if corners else []
            corners.append((x, y))
            best = y
    return corners


def _dash(run: RunRecord, group: str) -> str:
    """Groups of one role, whose hues are close, differ in their dashes too."""
    alike = [g for g in run.groups if run.role(g) == run.role(group)]
    return DASHES[alike.index(group) % len(DASHES)]


def losses(run: RunRecord) -> list[Plot]:
    """The loss and each of its terms over the optimizer steps, one small chart each, then the step's own figures."""
    names = list(dict.fromkeys(k for line in run.steps for k in line if k not in RUN_KEYS))
    names.sort(key=lambda name: (name == "lr", name == "grad_norm", name != "loss"))
    units = {"lr": "learning rate", "grad_norm": "gradient norm", "loss": "loss"}
    titles = {"loss": "Loss (weighted sum)", "lr": "Learning rate", "grad_norm": "Gradient norm"}
    starts, bands = {i: s for i, (s, _) in spans(run).items()}, _bands(run)
    by_phase: dict[int, list[Mapping[str, Any]]] = {index: [] for index in starts}
    for line in run.steps:
        by_phase.setdefault(line["phase"], []).append(line)
    size = max(1, math.ceil(len(run.steps) / POINTS))
    plots = []
    for name in names:
        points = _thinned(by_phase, name, starts, size)
        axes = Axes("optimizer step", units.get(name, "value"), None, bands, width=280, height=180, title=name)
        hue = 215 if name in units else 265
        plots.append(Plot(titles.get(name, f"Term: {name}"), chart([Line(name, hue, points)], axes)))
    return plots


def _thinned(
    by_phase: Mapping[int, Sequence[Mapping[str, Any]]], name: str, starts: Mapping[int, float], size: int
) -> list[tuple[float, float | None]]:
    """One point per `size` steps, the mean of what they hold; phases without the term interrupt the curve."""
    points: list[tuple[float, float | None]] = []
    for phase, start in starts.items():
        rows = [(start + line["step"], finite(line.get(name))) for line in by_phase[phase]]
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            known = [y for _, y in part if y is not None]
            points.append((sum(x for x, _ in part) / len(part), sum(known) / len(known) if known else None))
        points.append((start, None))
    return points


def adapters(run: RunRecord, top: float | None = None) -> list[Plot]:
    """Per block in depth order: how far each phase moved the adapters' update, and their norm after each phase.

    Args:
        top: upper end of the axis of movement, so that runs side by side have one scale.
    """
    if not run.adapters:
        return []
    colour, titles = _phase_hues(run), {p.index: p.title for p in run.phases}
    plots = []
    for key, title, unit in (
        ("adapter_moved", "How far each phase moved each block", "change (Frobenius norm)"),
        ("adapter_norm", "Norm of the adapters after each phase", "Frobenius norm of A, B"),
    ):
        blocks = list(dict.fromkeys(b for line in run.adapters for b in line.get(key, {})))
        if not blocks:
            continue
        lines: list[Line] = []
        legend = []
        for line in run.adapters:
            values = line.get(key, {})
            curve = [(float(i), finite(values.get(b))) for i, b in enumerate(blocks)]
            name, hue = titles.get(line["phase"], str(line["phase"])), colour.get(line["phase"], 215)
            dash = DASHES[len(lines) % len(DASHES)] if len(run.adapters) > 3 else ""
            lines.append(Line(name, hue, curve, marks=True, dash=dash))
            legend.append((name + (_centre(curve) if key == "adapter_moved" else ""), hue, dash))
        labels, prefix, meaning = _block_labels(blocks)
        limits = (0.0, top) if top and key == "adapter_moved" else None
        axes = Axes(f"{prefix or 'block'}, in order of depth", unit, limits, labels=labels, title=title)
        plots.append(Plot(title, chart(lines, axes), legend, meaning))
    return plots


def _centre(curve: Sequence[tuple[float, float | None]]) -> str:
    """Where in depth a movement has its centre of gravity: ', centre at 62 % of depth'."""
    total = sum(y for _, y in curve if y)
    if not total or len(curve) < 2:
        return ""
    return f", centre at {100 * sum(x * y for x, y in curve if y) / total / (len(curve) - 1):.0f} % of depth"


def _block_labels(blocks: Sequence[str]) -> tuple[list[str], str, str]:
    """Short names of the blocks, what all names begin with, and what letters stand for: 'blocks.0' and 'blocks.1' are '0'
    and '1' of 'blocks'; 'a.encoder.0' and 'a.decoder.0' are 'enc 0' and 'dec 0' of 'a'."""
    parts = [b.split(".") for b in blocks]
    same = 0
    while all(len(p) > same + 1 for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    prefix, rest = ".".join(parts[0][:same]), [p[same:] for p in parts]
    short = [p[0] if len(p) == 1 else f"{p[0][:3]} {p[-1]}" for p in rest]
    if len(set(short)) < len(short):
        return [str(i) for i in range(1, len(blocks) + 1)], "block", ""
    meaning = dict.fromkeys(f"{p[0][:3]}: {p[0]}" for p in rest if len(p) > 1)
    return short, prefix, ", ".join(meaning)


def finite(value: Any) -> float | None:
    """The value as a number, or None where it is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
