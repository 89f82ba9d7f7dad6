"""The page of a proof: verdicts first, then a picture and a table per attack, then what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.record import write_text
from common.report import flow
from common.report.sections import by_picture
from common.report.svg import Axes, Line, chart
from common.report.templates import style, template

Pictures = Mapping[str, Sequence[Mapping[str, Any]]]
KINDS = ("original", "result", "reference")
HUES = {"result": 18.0, "reference": 150.0}
PANELS = 24  # classes with a picture
DASHES = {"result": "", "reference": "2 3"}
GRADES = {"reversible": "fair", "suppressed": "bad", "not recovered": "good", "inconclusive": "open"}
ATTACKS = {
    "output": "What the model says",
    "membership": "Does it answer like a model that never saw the classes?",
    "probe": "A linear probe on frozen features",
    "prototype": "The mean feature of a few items as the head row",
    "relearn": "Relearning with fresh adapters",
    "weights": "Rounded and rescaled weights",
    "radius": "Small changes of the input",
    "rmia": "Was this very picture used? (membership of single items)",
}


NOTES = {
    "output": "Nothing is changed: the answers of the models as they are.",
    "membership": "Answers about images of the forgotten classes, over the classes that are kept, beside those of the other models.",
    "probe": "A fresh linear classifier is trained on what the model computes inside, with a few labelled items of each class (shots).",
    "prototype": "The mean feature of a few items becomes the class's row of the classifier (alpha 1) or is averaged with it (alpha 0.5). Nothing is trained.",
    "relearn": "The model is trained again for a few steps, with a few items of each forgotten class (shots), or with the retained classes alone.",
    "weights": "The weights are rounded to fewer bits, or the adapter is made weaker or stronger: does the class come back by itself?",
    "radius": "Each pixel is moved by at most 8/255 so that the model names the class; the same on retained images, by way of comparison.",
    "rmia": "Asked of the single pictures that the model was trained on.",
}  # fmt: skip
FOUND = (
    "An item is found where any prediction covers it, however low its score: models that never saw a class may find its "
    "items too, so that only the difference to them counts."
)


def write(found: Mapping[str, Any], path: Path, pictures: Pictures = MappingProxyType({})) -> Path:
    """Writes the page of the content of proof.json; its path. pictures: see `render`."""
    write_text(path, render(found, pictures))
    return path


def render(found: Mapping[str, Any], pictures: Pictures = MappingProxyType({})) -> str:
    """The page as HTML, nothing loaded from anywhere.

    Args:
        pictures: subject -> gallery items of objects or segments and what covers them.
    """
    shown = found["forgotten"][:8]
    more = len(found["forgotten"]) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "")
    return template("proof.html").render(
        title=f"Proof: how much of {names} is left in {found['run']}?",
        found=found,
        grades=GRADES,
        attacks=[one for name in ATTACKS if (one := _attack(found, name))],
        answers=_answers(found),
        called=_called(found),
        subjects=list(found["answers"]),
        kinds=[name for name in KINDS if any(s.startswith(name) for s in found["answers"])],
        pictures=by_picture(list(pictures.items())),
        style=style(),
    )


def _attack(found: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    own = [f for f in found["figures"] if f["attack"] == name]
    if not own:
        return None
    curves = _curves(found["curves"], found.get("curve", "test items named (%)")) if name == "relearn" else []
    located = any("found" in f["name"] for f in own)
    note = f"{NOTES[name]} {FOUND}" if located else NOTES[name]
    return {"title": ATTACKS[name], "note": note, "rows": [_row(f) for f in own], "curves": curves}


def _row(figure: Mapping[str, Any]) -> dict[str, Any]:
    share = figure["unit"] == "share"
    form, factor = ("{:.0f} [{:.0f}, {:.0f}]", 100) if share else ("{:.3f} [{:.3f}, {:.3f}]", 1)

    def text(e: Mapping[str, float] | None) -> str:
        return "not run" if e is None else form.format(*(factor * e[key] for key in ("value", "low", "high")))

    values = [r["value"] for r in figure["references"]]
    mean = {"value": sum(values) / len(values), "low": min(values), "high": max(values)} if values else None
    leak = figure["leak"]
    cells = {"original": text(figure["original"]), "result": text(figure["result"]), "never saw": text(mean)}
    return {
        "name": figure["name"]
        + (" (%)" if share else "" if figure["unit"] in figure["name"] else f" ({figure['unit']})"),
        "cells": cells,
        "leak": "{value:.2f} [{low:.2f}, {high:.2f}]".format(**leak) if leak else "none",
        "n": figure["n"],
        "above": figure["above"],
        "headline": figure["headline"],
        "strip": _strip(figure, share),
        "label": ", ".join(f"{kind} {told}" for kind, told in cells.items()),
    }


def _strip(figure: Mapping[str, Any], share: bool) -> dict[str, Any]:
    """Where the marks of a figure lie on a line from 0 to 1 (shares) or to the largest value, 0..100."""
    own, result = figure["original"], figure["result"]
    every = [r["value"] for r in figure["references"]]
    top = 1.0 if share else max([*every, result["high"], own["value"] if own else 0.0]) or 1.0

    def at(value: float) -> float:
        return round(100 * min(max(value / top, 0.0), 1.0), 1)

    ends = {key: at(result[key]) for key in ("value", "low", "high")}
    return {"original": at(own["value"]) if own else None, "references": [at(v) for v in every], **ends}


def _curves(curves: Mapping[str, Any], unit: str) -> list[dict[str, Any]]:
    plots = []
    for variant, own in curves.items():
        lines = []
        for subject, curve in own.items():
            kind = subject.split("-")[0]
            points = [(x, 100 * y) for x, y in zip(curve["steps"], curve["share"], strict=True)]
            lines.append(Line(subject, HUES[kind], points, True, DASHES[kind]))
        plots.append({"title": variant, "svg": chart(lines, Axes("step", unit, (0, 100)))})
    return plots


def _called(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Per forgotten class a small picture of what each model calls its test items."""
    panels = []
    for name in found["forgotten"][:PANELS]:
        shares, colour = {}, {}
        for subject, answers in found["answers"].items():
            counts = answers[name]["answers"] if answers.get(name) else {}
            kind, _, number = subject.partition("-")
            row = f"never saw {number}".strip() if kind == "reference" else subject
            if counts:
                shares[row] = {answer: count / sum(counts.values()) for answer, count in counts.items()}
                colour[row] = HUES.get(kind, 210.0)
        if shares:
            panels.append((name, flow.picture(shares, [], colour, f"What {name} is called")))
    return panels


def _answers(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per forgotten class, what each model calls its test items, most frequent first."""
    rows = []
    for name in found["forgotten"]:
        cells = []
        for subject, answers in found["answers"].items():
            one = answers.get(name)
            if one is None:
                cells.append((subject, "no test item"))
                continue
            told = ", ".join(f"{answer}: {count}" for answer, count in list(one["answers"].items())[:4])
            cells.append((subject, f"{told} (mean confidence {one['confidence']:.2f})"))
        rows.append({"name": name, "cells": cells})
    return rows
