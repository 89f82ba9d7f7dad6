"""What the page shows of one run, as plain data for the template."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report import details, flow, plots, words
from common.report.runs import PROOF_PAGE, RunRecord, forgetting, read_proof
from common.report.table import NONE, duration, memory
from common.report.verdict import ended, verdicts

MANY = 120  # classes of a group; above, the bars show those that changed most
COMPARED = 4  # runs whose answers fit below one picture
NAME = 16  # characters of a class name that always fit; longer names are cut, with the whole as a tooltip
LOST, WORST = 1.0, 20  # points below its best from which on a class is shown, and how many at most
FAST = "features below the adapted blocks are the base model's: probes find forgotten classes there as before"


def section(
    run: RunRecord, title: str, moved: float | None = None, place: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """Everything the template needs to show a run.

    moved: top of the axis of the adapters' movement; place: folder of the page.
    """
    colour = plots.hues(run)
    curves = [p for p in (plots.scores(run),) if p]
    return {
        "run": run,
        "title": title,
        "hues": colour,
        "status": status(run),
        "verdicts": verdicts(run),
        "rows": score_rows(run),
        "extra": extra_rows(run),
        "about": words.paragraph(run),
        "flow": flow.flow(run, colour),
        "moves": flow.sentences(run),
        "spill": spill_rows(run),
        "peaks": peaks(run),
        "facts": facts(run),
        "curves": curves,
        "losses": plots.losses(run),
        "adapters": plots.adapters(run, moved),
        "bars": class_bars(run),
        "figures": details.figures(run),
        "class_curves": details.curves(run),
        "pictures": pictures(run),
        "proof": read_proof(run.folder),
        "proof_page": Path(os.path.relpath(run.folder / PROOF_PAGE, place or run.folder)).as_posix(),
        "config": json.dumps(run.config, indent=1, ensure_ascii=False),
    }


def status(run: RunRecord) -> str:
    """One sentence about a run that is not finished; empty for a finished one."""
    if run.finished:
        return ""
    last = run.steps[-1] if run.steps else None
    ended = len(run.moments) - 1
    if not run.moments:
        return "This run is unfinished: it stopped before its first scores."
    if ended >= len(run.phases):
        return "This run is unfinished: all phases are trained, but it was stopped before it closed its records."
    where = f"; the last saved step is step {last['step'] + 1} of phase {last['phase']}" if last else ""
    return f"This run is unfinished: {max(0, ended)} of {len(run.phases)} phases are done{where}."


def score_rows(run: RunRecord) -> list[dict[str, Any]]:
    """Per group: its score at every moment, and the change from first to last."""
    rows = []
    for group in run.groups:
        scores = [m.scores.get(group) for m in run.moments]
        first, last = (scores[0], scores[-1]) if len(scores) > 1 else (None, None)
        change = NONE if first is None or last is None else f"{last - first:+.1f}".replace("-", "−")
        cells = [(_fixed(s), run.standing(group, i) if _touched(run, group, i) else "") for i, s in enumerate(scores)]
        row = {"group": group, "role": run.role(group), "count": len(run.groups[group])}
        rows.append(row | {"change": change, "cells": cells})
    return rows


def _touched(run: RunRecord, group: str, index: int) -> bool:
    """Whether phase `index` trained the group."""
    return index > 0 and group in run.phases[index - 1].groups


def spill_rows(run: RunRecord, most: int = 4) -> list[dict[str, Any]]:
    """Per forgotten class: its commonest answers in the end, their confidence, the distance to the base's own."""
    return [
        {
            "name": name,
            "answers": [(answer, 100 * share) for answer, share in list(found["answers"].items())[:most]],
            "confidence": found["confidence"],
            "distance": found.get("distance"),
        }
        for name, found in run.latest("spill").items()
    ]


def peaks(run: RunRecord) -> list[dict[str, Any]]:
    """Classes that should be known and score lower than before: how far below their best, and when that was; worst first."""
    rows: list[dict[str, Any]] = []
    for group, members in run.groups.items():
        for name in map(str, members) if run.role(group) != "forget" else ():
            scores = [(moment.per_class[name], moment.title) for moment in run.moments if name in moment.per_class]
            if scores and (lost := max(scores)[0] - scores[-1][0]) >= LOST:
                best, when = max(scores)
                rows.append(
                    {"group": group, "name": name, "lost": lost, "best": best, "when": when, "now": scores[-1][0]}
                )
    return sorted(rows, key=lambda row: -row["lost"])[:WORST]


def extra_rows(run: RunRecord) -> list[tuple[str, list[str]]]:
    """Rows below the scores: drops, H-means and zero groups at every moment, where the run has them."""
    states = [forgetting(run, i) for i in range(len(run.moments))]
    names = [
        (f"{label} from {start.replace('_', ' ')}", f"{name}_{start}")
        for start in ("pretrained", "phase_start")
        for label, name in (("drop", "drop"), ("H-mean", "h"))
    ]
    rows = []
    if any(states):
        rows += [(label, [_fixed(getattr(s, name)) if s else "" for s in states]) for label, name in names]
    if run.adapters:
        zero = {}
        for line in run.adapters:
            count = len(line["adapter_norm"])
            zero[line["phase"]] = f"{round(line['zero_groups'] * count)} of {count}"
        cells = [zero.get(m.index, "") for m in run.moments]
        rows.append(("zero adapter groups", cells))
    return rows


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Size, cost, data and origin of a run, as (name, text)."""
    found: list[tuple[str, Any]] = []
    parameters, done, data = run.config.get("parameters", {}), run.done or {}, run.identity.get("data", {})
    if parameters:
        share = 100 * parameters["trainable"] / max(1, parameters["total"])
        found.append(
            ("trainable parameters", f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2f} %)")
        )
    found.append(("training time", duration(done["seconds"]) if "seconds" in done else NONE))
    found.append(("peak memory", memory(done["peak_memory"]) if done.get("peak_memory") else NONE))
    found += [
        (f"phase {line['phase']} {line['action']}", ended(line["ended"])) for line in run.lines if "ended" in line
    ]
    if "outputs_read" in done:
        told = (
            f"{done['outputs_read']:,.0f} outputs read from the cache, {done.get('outputs_computed', 0):,.0f} computed"
        )
        found.append(("parts that do not train", told))
    if data.get("fast"):
        found.append(("--fast", FAST))
    skipped = data.get("skipped", 0)
    skipped = len(skipped) if isinstance(skipped, list) else skipped
    found += [("model", _model(data.get("model"))), ("data", data.get("data"))]
    found.append(("left out", f"{skipped} damaged or foreign files were skipped" if skipped else "no file was skipped"))
    machine = run.config.get("machine", {})
    place = f"{machine.get('system', '')}, {machine.get('cores', '?')} cores" if machine else None
    versions = ", ".join(f"{k} {v}" for k, v in run.config.get("versions", {}).items())
    found += [("method", run.method), ("seed", run.train.get("seed"))]
    found += [(name, run.config.get(name)) for name in ("precision", "device")]
    found += [("processes", run.identity.get("world")), ("machine", place), ("versions", versions)]
    found += [(name, run.config.get(name)) for name in ("commit", "started")]
    found.append(("folder", str(run.folder)))
    return [(name, str(text)) for name, text in found if text not in (None, "")]


def _model(told: Any) -> Any:
    """The name of a model; of settings of one what it is called there and its backbone."""
    if not isinstance(told, Mapping):
        return told
    return ", ".join(str(told[name]) for name in ("modelname", "model_type", "backbone") if told.get(name))


def class_bars(run: RunRecord) -> list[dict[str, Any]]:
    """Per group: (class, before, after) with scores or None; of very many classes, those that changed most."""
    if not run.moments:
        return []
    first, last = run.moments[0].per_class, run.moments[-1].per_class
    result = []
    for group, members in run.groups.items():
        rows = [(c, first.get(c), last.get(c) if len(run.moments) > 1 else None) for c in map(str, members)]
        rows = [row for row in rows if row[1] is not None or row[2] is not None]
        shown = rows
        if len(rows) > MANY:
            chosen = {r[0] for r in sorted(rows, key=lambda r: -abs((r[2] or 0) - (r[1] or 0)))[:MANY]}
            shown = [r for r in rows if r[0] in chosen]
        if rows:
            width = min(NAME, max(len(name) for name, _, _ in shown))
            result.append({"group": group, "rows": shown, "left_out": len(rows) - len(shown), "width": width})
    return result


def pictures(run: RunRecord) -> list[dict[str, Any]]:
    """The gallery by group: per test picture its truth, and (views) each distinct picture with its answers."""
    moments = list(run.gallery)
    titles = moments if len(moments) <= 3 else [moments[0], moments[-1]]
    return _by_group(run, [(title, run.gallery[title]) for title in titles])


def shared_pictures(runs: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """The gallery of runs that began with the same answers: before, and after each run. Empty where they did not."""
    first = list(runs[0].gallery.values())[:1]
    if (
        not first
        or len(runs) > COMPARED
        or any(list(run.gallery.values())[:1] != first or len(run.gallery) < 2 for run in runs)
    ):
        return []
    after = [(name, list(run.gallery.values())[-1]) for name, run in zip(names, runs, strict=True)]
    return _by_group(runs[0], [("before", first[0]), *after])


def _by_group(run: RunRecord, answers: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    owner = {str(c): g for g, members in run.groups.items() for c in members}
    result: dict[str, list[dict[str, Any]]] = {}
    for shown in by_picture(answers):
        result.setdefault(owner.get(shown["truth"], ""), []).append(shown)
    return [{"group": g, "items": items} for g, items in result.items()]


def by_picture(answers: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Per test picture its name, its truth and its views with their answers, from (title, gallery items) pairs."""
    result = []
    for name in dict.fromkeys(item["name"] for _, items in answers for item in items):
        named = ((title, [item for item in items if item["name"] == name]) for title, items in answers)
        seen = [(title, items[0]) for title, items in named if items]  # a picture of two groups was answered twice
        wide = _wide(seen[0][1]["picture"])
        result.append({"name": name, "truth": str(seen[0][1]["truth"]), "wide": wide, "views": _views(seen)})
    return result


def _views(seen: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Equal pictures once, with all their answers below; pictures that differ side by side."""
    views: dict[str, dict[str, Any]] = {}
    for title, item in seen:
        view = views.setdefault(item["picture"], {"source": _source(item["picture"]), "answers": []})
        view["answers"].append((title, str(item["answer"]), item.get("correct")))
    return list(views.values())


def _wide(encoded: str) -> bool:
    """Whether a PNG is at least twice as wide as high: several panels in a row."""
    header = base64.b64decode(encoded[:32])
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    return header[1:4] == b"PNG" and width >= 2 * height


def _source(encoded: str) -> str:
    """A data address. A line break, which browsers skip, keeps chance letters from reading like a web address."""
    kind = "jpeg" if encoded.startswith("/9j/") else "png"
    return f"data:image/{kind};base64,{encoded}".replace("http", "ht\ntp")


def _fixed(score: float | None) -> str:
    return NONE if score is None else f"{score:.1f}"
