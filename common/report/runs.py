"""Reads run folders and says what is known at each moment of a run: before training and after each phase."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluation.run_measures import groups_of, pooled, weights_of
from common.evaluation.scores import drop, h_mean
from common.plan import ACTIONS, Phase, standing
from common.record import DETAILS, METRICS, PROOF_MODELS, STEPS, read_lines, read_run_config
from common.report.forms import Axes, Config, Detail, DoneFile, MetricLine, Picture, ProofFile, StepLine
from common.schema import checked_json, typed

PROOF, PROOF_PAGE = "proof.json", "proof.html"  # of `prove`


@dataclass(frozen=True)
class Moment:
    """The state before training (index 0) or after a phase.

    scores: group -> 0..100, groups without a usable score left out.
    per_class: class -> 0..100, likewise.
    """

    index: int
    title: str
    scores: Mapping[str, float]
    per_class: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds, finished or not.

    stored: the content of details.json: "axes" of its curves, and by phase number what is behind the scores.
    """

    folder: Path
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]
    gallery: Mapping[str, Sequence[Mapping[str, Any]]]
    done: Mapping[str, Any] | None
    stored: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.config["identity"]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def plan(self) -> str:
        return str(self.identity["plan"]["name"])

    @property
    def train(self) -> Mapping[str, Any]:
        return self.identity.get("train", {})

    @property
    def method(self) -> str:
        return str(self.train.get("method", ""))

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        return self.identity["plan"]["groups"]

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases as the run carried them out."""
        found = self.config.get("phases", [])
        names = (
            "groups",
            "target",
            "keep",
            "gone",
            "unknown",
            "later",
        )  # records from before the last three existed lack them
        return [Phase(p["index"], p["action"], *(tuple(p.get(name, ())) for name in names)) for p in found]

    @property
    def metric_label(self) -> str:
        """What the scores are, with its unit: 'top-1 accuracy (%)'."""
        return str(self.config.get("metric_label") or self.config.get("metric") or "score")

    @property
    def meaning(self) -> str:
        """What the score is, in a sentence; "" in older records."""
        return str(self.config.get("meaning", ""))

    @property
    def answered(self) -> str:
        """What answers are counted in: 'test images'."""
        return str(self.config.get("answered", "test items"))

    @property
    def titles(self) -> Mapping[str, str]:
        """What classes are called whose names are codes; {} in older records, and where there are none."""
        return self.config.get("titles", {})

    def titled(self, name: str) -> str:
        """'English springer (n02102040)'; the name itself where it is a word."""
        return f"{self.titles[name]} ({name})" if name in self.titles else name

    def answers(self, index: int) -> dict[str, Mapping[str, float]]:
        """Class -> what its items were called before training (0) or at the last moment (-1) -> share, 0..1, the largest
        first; {} where it was not recorded."""
        groups = self.details[index].values() if self.details else ()
        return {name: own for found in groups for name, own in found.get("answers", {}).items()}

    @property
    def unit(self) -> str:
        """' %' where the scores are percentages, else ''."""
        return " %" if "%" in self.metric_label else ""

    @cached_property
    def scored(self) -> list[Mapping[str, Any]]:
        """The lines that hold a group's score, in order of time."""
        return [line for line in self.lines if "score" in line]

    @cached_property
    def sampled(self) -> list[Mapping[str, Any]]:
        """The lines that hold scores of a small sample of test items, in order of time."""
        return [line for line in self.lines if "sample" in line]

    @cached_property
    def adapters(self) -> list[Mapping[str, Any]]:
        """One line per finished phase: adapter norms, how far they moved, zero groups. Empty without adapters."""
        return [line for line in self.lines if "adapter_norm" in line]

    def latest(self, name: str) -> Mapping[str, Any]:
        """What the last finished phase tells under a name of metrics.jsonl, by class; {} where it tells nothing."""
        last = len(self.moments) - 1
        return next((line[name] for line in self.lines if name in line and line["phase"] == last), {})

    @cached_property
    def moments(self) -> list[Moment]:
        """Before training and after every finished phase."""
        titles = {0: "before", **{p.index: p.title for p in self.phases}}
        found = []
        for index, title in titles.items():
            ends = [line for line in self.scored if line["phase"] == index and line["end"]]
            if not ends:
                break
            scores = {line["group"]: line["score"] for line in ends if _number(line["score"])}
            classes = {c: s for line in ends for c, s in line.get("per_class", {}).items() if _number(s)}
            found.append(Moment(index, title, scores, classes))
        return found

    @property
    def details(self) -> list[Mapping[str, Any]]:
        """group -> {"figures", "curves", "answers"} before training and after each phase scored so far; empty without any."""
        keys = [str(moment.index) for moment in self.moments]
        return [self.stored[key] for key in keys] if self.stored.keys() >= set(keys) else []

    @property
    def curve_axes(self) -> tuple[str, str]:
        """What the curves of `details` show, horizontally and vertically."""
        x, y = self.stored.get("axes", ("", ""))
        return x, y

    @property
    def finished(self) -> bool:
        return self.done is not None

    def standing(self, group: str, index: int) -> str:
        """What a group is after phase `index`: "learn", "forget", or "retain" where no phase has touched it yet."""
        return next((a for a in ACTIONS if group in standing(self.phases[:index], a)), "retain")

    def role(self, group: str) -> str:
        """The group's last action in the whole plan."""
        return self.standing(group, len(self.phases))

    def pooled(self, groups: Sequence[str], moment: Moment) -> float | None:
        """One score for several groups, weighted by their test items, or their classes for a mean over classes; None
        where nothing was scored."""
        return pooled(weights_of(self.groups, self.lines), groups, moment.scores)


@dataclass(frozen=True)
class Forgetting:
    """Drop and H-mean at one moment, by both definitions of "before". Scores 0..100."""

    groups: tuple[str, ...]
    drop_pretrained: float
    drop_phase_start: float
    h_pretrained: float
    h_phase_start: float


def forgetting(run: RunRecord, index: int) -> Forgetting | None:
    """How the latest forget phase stands after phase `index`; None before any forget phase.

    The forgotten set is that of the latest forget phase; the retained score is that of every class to be known
    at this moment (the phase's keep set and, after a learn phase, what it learned).

    Source: GS-LoRA, Zhao et al., CVPR 2024, arXiv:2403.11530; at the end of a forget phase it is their H-mean.
    """
    if not 1 <= index < len(run.moments):
        return None
    latest = max((p.index for p in run.phases[:index] if p.action == "forget"), default=0)
    if not latest:
        return None
    groups = [g for g in run.phases[latest - 1].groups if run.standing(g, index) == "forget"]
    now, phase = run.moments[index], run.phases[index - 1]
    known = [*phase.keep, *(phase.target if phase.action == "learn" else ())]
    retain, after = run.pooled(groups_of(run.groups, known), now), run.pooled(groups, now)
    first, start = (run.pooled(groups, run.moments[i]) for i in (0, latest - 1))
    if retain is None or after is None or first is None or start is None:
        return None
    drops = drop(first, after), drop(start, after)
    return Forgetting(tuple(groups), *drops, *(h_mean(retain, d) for d in drops))


def read_proof(folder: Path) -> dict[str, Any] | None:
    """proof.json of a run folder, where there is one. Raises UserError where it is damaged."""
    path = folder / PROOF
    found: dict[str, Any] | None = checked_json(path, ProofFile, "`prove` writes it again") if path.exists() else None
    return found


def read_run(folder: str | Path) -> RunRecord:
    """The record of a run folder.

    Raises:
        UserError: the folder is no run.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.json; name the --output-dir of a finished swap.")
    config = read_run_config(folder)
    typed(config, Config, str(path), "it is not the record of a run; name the --output-dir of a finished run")
    groups = config["identity"]["plan"]["groups"]
    if strange := [g for phase in config.get("phases", []) for g in phase["groups"] if g not in groups]:
        raise UserError(f"{path} is damaged: a phase trains group {strange[0]!r}, which its plan lacks.")
    kinds = {
        "gallery.json": dict[str, list[Picture]],
        "done.json": DoneFile,
        DETAILS: dict[str, Axes | dict[str, Detail]],
    }
    gallery, done, stored = (
        checked_json(folder / name, kind) if (folder / name).is_file() else None for name, kind in kinds.items()
    )
    lines, steps = read_lines(folder / METRICS, MetricLine), read_lines(folder / STEPS, StepLine)
    return RunRecord(folder, config, lines, steps, gallery or {}, done, stored or {})


def summary(run: RunRecord) -> dict[str, Any]:
    """The small JSON behind a table: what was run, and the scores at every moment, with each group's figures beside
    its score where the domain gives any."""
    data = {k: v for k, v in run.identity.get("data", {}).items() if k != "images"}
    moments = [{"title": m.title, "scores": m.scores, "per_class": m.per_class} for m in run.moments]
    for moment, groups in zip(moments, run.details, strict=False):  # no details at all: moments stay as they are
        moment["figures"] = {
            group: {name: values.get("total") for name, values in found["figures"].items()}
            for group, found in groups.items()
        }
    ended = [line["ended"] for line in run.lines if "ended" in line]
    return {
        "name": run.name,
        "finished": run.finished,
        **({"ended": ended} if ended else {}),  # of phases that could settle
        "identity": {**run.identity, "data": data},
        "command": run.config.get("command"),
        "versions": run.config.get("versions"),
        "done": run.done,
        "parameters": run.config.get("parameters"),
        "moments": moments,
    }


def find_runs(places: Sequence[str | Path]) -> list[RunRecord]:
    """The runs in these folders and below them, each once, in order; not the models that proofs trained.

    Raises:
        UserError: a place does not exist or holds no run.
    """
    found: dict[Path, RunRecord] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise UserError(f"{place} is no folder; name run folders, or a folder of them such as results/.")
        folders = sorted(_run_folders(place))
        if not folders:
            raise UserError(f"no run in {place}: no folder there holds config.json and {METRICS}.")
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = read_run(folder)
    return list(found.values())


def _run_folders(place: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name != PROOF_MODELS]
        if {"config.json", METRICS} <= set(files):
            yield Path(top)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
