"""Run folders made by hand, and their pages, for tests of reports."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy

from common.plan import Plan, make_plan
from common.record import METRICS, STEPS, write_json
from common.report.page import render
from common.report.runs import read_run

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==",
)


FLTF = make_plan("fltf", ["owl", "<b>hen</b>"], ["cat", "dog"], ["ant", "bee", "cow"])


def make_run(
    folder: Path, plan: Plan = FLTF, seed: int = 0, phases: int = 99, done: bool = True, adapter: bool = True,
    gallery: bool = True, label: str = "top-1 accuracy (%)", blocks: int = 4, **train,
) -> Path:  # fmt: skip
    """A run folder as the loop writes it, with scores drawn from the seed, cut off after `phases` phases."""
    draw = numpy.random.default_rng(seed)
    config = {"method": "gs_lora", "epochs": 2, "steps": 0, "seed": seed, **train}
    data = {"model": "tiny", "skipped": 3, "images": {"train": {"cat": 5}}}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {
        "identity": {"domain": "toy", "plan": plan.record(), "train": config, "data": data, "world": 1},
        "phases": [{**vars(p), "title": p.title} for p in plan.phases], "metric": "acc", "metric_label": label,
        "command": "python swap.py --learn '<b>hen</b>'", "versions": {"torch": "2.0"},
        "parameters": {"trainable": 1000 + len(plan.steps), "total": 50_000},
    })  # fmt: skip
    lines, steps, pictures = [], [], {}
    level = {g: 90.0 if g not in plan.learned_groups else 0.0 for g in plan.groups}
    for index in range(min(phases, len(plan.phases)) + 1):
        phase = plan.phases[index - 1] if index else None
        for group in phase.groups if phase else ():
            level[group] = 90.0 if phase.action == "learn" else 2.0
        action = phase.action if phase else "start"
        for epoch in (1, 2) if phase else (0,):
            for group, classes in plan.groups.items():
                score = {c: min(100.0, max(0.0, level[group] + draw.normal())) for c in classes}
                lines.append({"phase": index, "action": action, "epoch": epoch, "step": 10 * epoch, "end": epoch != 1,
                              "group": group,
                              "metric": "acc", "score": sum(score.values()) / len(score), "per_class": score})  # fmt: skip
        if phase and adapter:
            norms = {f"blocks.{b}": float(abs(draw.normal())) for b in range(blocks)}
            lines.append(
                {"phase": index, "action": action, "adapter_norm": norms, "adapter_moved": norms, "zero_groups": 0.25}
            )
        steps += [{"phase": index, "epoch": n // 10, "step": n, "lr": 1e-3, "loss": float(draw.random()), "keep": 0.1,
                   "grad_norm": 1.0} for n in range(20 if phase else 0)]  # fmt: skip
        pictures[phase.title if phase else "before"] = [
            {"name": f"{c}.png", "picture": PIXEL[0], "truth": c, "answer": f"{c} 9{index} %", "correct": index == 0}
            for classes in plan.groups.values() for c in classes[:2]
        ]  # fmt: skip
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / STEPS).write_text("".join(json.dumps(line) + "\n" for line in steps))
    if gallery:
        write_json(folder / "gallery.json", pictures)
    if done:
        write_json(folder / "done.json", {"seconds": 61.0 + seed, "peak_memory": 3 * 2**30})
    return folder


def page_of(*folders: Path) -> str:
    return render([read_run(folder) for folder in folders])


class Addresses(HTMLParser):
    """Collects every attribute value that a browser would load or follow, and every start tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.loaded += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "xmlns", "poster")]
