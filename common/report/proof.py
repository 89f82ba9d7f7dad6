"""The page of a proof: verdicts first, then a picture and a table per attack, then what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.record import write_bytes
from common.report.svg import Axes, Line, chart

HERE = Path(__file__).parent
HUES = {"original": 210.0, "result": 18.0, "reference": 150.0}
DASHES = {"original": "7 4", "result": "", "reference": "2 3"}
GRADES = {"reversible": "fair", "suppressed": "bad", "not recovered": "good", "inconclusive": "open"}
ATTACKS = {
    "output": "What the model says",
    "membership": "Does it answer like a model that never saw the classes?",
    "probe": "A linear probe on frozen features",
    "prototype": "The mean feature of a few items as the head row",
    "relearn": "Relearning with fresh adapters",
    "weights": "Rounded and rescaled weights",
    "radius": "Small changes of the input",
}


def write(found: Mapping[str, Any], path: Path) -> Path:
    """Writes the page of the content of proof.json; its path."""
    write_bytes(path, render(found).encode())
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML, nothing loaded from anywhere."""
    import jinja2
    from markupsafe import Markup

    loader, strict = jinja2.FileSystemLoader(HERE), jinja2.StrictUndefined
    env = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)
    return env.get_template("proof.html").render(
        found=found,
        grades=GRADES,
        attacks=[one for name in ATTACKS if (one := _attack(found, name))],
        answers=_answers(found),
        subjects=list(found["answers"]),
        legend=[(name, HUES[name], DASHES[name]) for name in HUES if any(s.startswith(name) for s in found["answers"])],
        style=Markup((HERE / "style.css").read_text()),
    )


def _attack(found: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    own = [f for f in found["figures"] if f["attack"] == name]
    if not own:
        return None
    plots = [*_plots(own), *(_curves(found["curves"]) if name == "relearn" else [])]
    return {"title": ATTACKS[name], "rows": [_row(f) for f in own], "plots": plots}


def _row(figure: Mapping[str, Any]) -> dict[str, Any]:
    share = figure["unit"] == "share"

    def text(e: Mapping[str, float] | None) -> str:
        if e is None:
            return "not run"
        form = "{:.0f} [{:.0f}, {:.0f}]" if share else "{:.3f} [{:.3f}, {:.3f}]"
        factor = 100 if share else 1
        return form.format(*(factor * e[key] for key in ("value", "low", "high")))

    references = [r["value"] for r in figure["references"]]
    mean = (
        {"value": sum(references) / len(references), "low": min(references), "high": max(references)}
        if references
        else None
    )
    leak = figure["leak"]
    return {
        "name": figure["name"] + (" (%)" if share else f" ({figure['unit']})"),
        "cells": [text(figure["original"]), text(figure["result"]), text(mean)],
        "leak": "{value:.2f} [{low:.2f}, {high:.2f}]".format(**leak) if leak else f"none: {figure['no_leak']}",
        "n": figure["n"],
        "above": figure["above"],
        "headline": figure["headline"],
    }


def _plots(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One chart per series: figures whose names differ only behind the last comma."""
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for figure in figures:
        series.setdefault((figure["name"].rpartition(", ")[0], figure["unit"]), []).append(figure)
    plots = []
    for (title, unit), own in series.items():
        labels = [f["name"].rpartition(", ")[2] for f in own]
        share, count = unit == "share", max(len(f["references"]) for f in own)
        factor = 100 if share else 1
        clouds = [[f["references"][i] if i < len(f["references"]) else None for f in own] for i in range(count)]
        rows = [("original", [f["original"] for f in own]), *(("reference", c) for c in clouds),
                ("result", [f["result"] for f in own])]  # fmt: skip
        lines = [
            Line(name, HUES[name], [(i, e and factor * e["value"]) for i, e in enumerate(es)], True, DASHES[name])
            for name, es in rows
        ]
        axes = Axes("", "test items named (%)" if share else unit, (0, 100) if share else None, labels=labels)
        plots.append({"title": title or own[0]["attack"], "svg": chart(lines, axes)})
    return plots


def _curves(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    plots = []
    for variant, own in curves.items():
        if not variant.startswith("relearn"):
            continue
        lines = []
        for subject, curve in own.items():
            kind = subject.split("-")[0]
            points = [(x, 100 * y) for x, y in zip(curve["steps"], curve["share"], strict=True)]
            lines.append(Line(subject, HUES[kind], points, True, DASHES[kind]))
        plots.append({"title": variant, "svg": chart(lines, Axes("step", "test items named (%)", (0, 100)))})
    return plots


def _answers(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per forgotten class, what each model calls its test items, most frequent first."""
    rows = []
    for name in found["forgotten"]:
        cells = []
        for answers in found["answers"].values():
            one = answers.get(name)
            if one is None:
                cells.append("no test item")
                continue
            told = ", ".join(f"{answer} {count}" for answer, count in list(one["answers"].items())[:4])
            cells.append(f"{told} (mean confidence {one['confidence']:.2f})")
        rows.append({"name": name, "cells": cells})
    return rows
