"""References: the base model's recorded recipe again, without the forgotten classes, side by side, once for all runs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from common import hub, run_flags, trainer
from common.claim import in_use
from common.errors import UserError
from common.record import PROOF_MODELS, read_run_config, write_text
from common.schema import read_json
from common.session import Session
from common.splits import write_list
from common.sweep.engines import POLL
from common.sweep.rows import Row

RECIPE = "recipe.json"
COUNT = 3  # that a proof trains where nothing else is asked for
UNSAID = ("seed", "output_dir", "overwrite", "report", "config", "help_all", "gallery", "save_every", "device", "threads", "num_gpus",
          "tensorboard", "wandb", "classes", "feature_cache", "feature_cache_gb")  # flags that do not say what a reference is  # fmt: skip


class Recipe(NamedTuple):
    """How a base model was trained from nothing.

    stages:  flags of one pretraining run after the other; each but the first starts from the one before.
    classes: what the model knows; seconds: of one core that it took, 0 where that is not recorded.
    """

    stages: list[dict[str, Any]]
    classes: list[str]
    seconds: float = 0.0


class Written(msgspec.Struct, forbid_unknown_fields=True):
    """The recipe of a model that is no run: RECIPE in its folder, or beside its file, NAME.recipe.json of NAME.pth.

    commands: flags of `pretrain`, one run after the other; {here} stands for the folder of this file.
    """

    commands: list[str]
    classes: list[str]
    about: str = ""
    cpu_seconds: float = 0.0


def recipe(session: Session, base: Path) -> tuple[Recipe | None, str]:
    """(how a base model was trained from nothing, or None, why that is not known)."""
    if not session.is_run(base):
        path = base / RECIPE if base.is_dir() else base.with_suffix(f".{RECIPE}")
        return (_written(session, path), "") if path.is_file() else (None, f"nothing records how {base} was trained")
    record = read_run_config(base)
    if record["identity"]["plan"]["name"] != "pretrain":
        return None, f"{base} is an earlier swap, not a model trained from scratch"
    flags, started = record["flags"], record["flags"].get("checkpoint") or record["flags"].get("pretrained")
    if hub.is_hub(str(flags.get("model") or "")):
        try:
            place = hub.folder_of(flags["model"], fetch=False)  # a record is no reason to download
        except UserError as error:
            return None, str(error).rstrip(".")
        flags, started = flags | {"model": f"{hub.PREFIX}{place}"}, started or hub.has_weights(place)
    if started:
        return None, f"{base} itself started from other weights, which may have seen the classes"
    done = base / "done.json"
    seconds = read_json(done).get("cpu_seconds") if done.exists() else None
    return Recipe([flags], list(record["identity"]["plan"]["groups"]["base"]), seconds or 0.0), ""


def shortened(flags: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A stage with a share of its steps, or of its epochs where it has no number of steps."""
    if share == 1:
        return dict(flags)
    name = "steps" if flags.get("steps") else "epochs"
    return {**flags, name: max(1, round(share * flags[name]))}


def _written(session: Session, path: Path) -> Recipe:
    found = read_json(path, Written, advice="mend it")
    here = shlex.quote(str(path.parent))
    commands = [session.tidy(shlex.split(text.replace("{here}", here))) for text in found.commands]
    stages = [run_flags.parsed(session, "pretrain", words).flags for words in commands]
    return Recipe(stages, found.classes, found.cpu_seconds)


@dataclass
class References:
    """Models of one recipe that know `classes`, with the seeds behind the base's own.

    without: the classes that they are never to see; where a picture shows several things, those with them are left out.
    folder: of the run that is proved. The models lie with the base where that is a run of ours, else beside the proved
        run, else in it, wherever can be written, under a hash of recipe and classes: other runs of this base that
        forget the same classes find them.
    """

    session: Session
    stages: Sequence[Mapping[str, Any]]
    classes: Sequence[str]
    without: Sequence[str]
    base: Path
    folder: Path

    @property
    def place(self) -> Path:
        """The folder of these models."""
        told = [{name: value for name, value in flags.items() if name not in UNSAID} for flags in self.stages]
        text = json.dumps([*told, list(self.classes), *self._unwanted()], sort_keys=True, default=str)
        places = (self.base if self.session.is_run(self.base) else self.folder.parent, self.folder / "proof")
        parent = next((place for place in places if os.access(place, os.W_OK)), places[-1])
        return parent / PROOF_MODELS / hashlib.sha256(text.encode()).hexdigest()[:12]

    def rows(self, count: int) -> list[tuple[Row, ...]]:
        """Of each model the commands that train it, one for each stage; writes the recipes that they read."""
        place, package = self.place, type(self.session).__module__.partition(".")[0]
        for number, flags in enumerate(self.stages):
            write_text(place / _name(number), yaml.safe_dump(self._values(flags), allow_unicode=True))
        rows, first = [], int(self.stages[0]["seed"]) + 1
        for seed in range(first, first + count):
            own: list[Row] = []
            for number in range(len(self.stages)):
                last = number == len(self.stages) - 1
                folder = place / (f"seed{seed}" if last else f"seed{seed}-stage{number + 1}")
                words = ["-m", package, "pretrain", "--config", str(place / _name(number)), "--seed", str(seed)]
                words += ["--checkpoint", str(own[-1].folder)] if own else []
                own.append(Row(folder.name, folder.name, (*words, "--output-dir", str(folder)), folder))
            rows.append(tuple(own))
        return rows

    def _values(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a stage that `pretrain` takes; a record of an older version may hold others."""
        changed = {"classes": write_list(self.classes), "report": False, "overwrite": False, "gallery": 0,
                   "save_every": 20.0, "threads": flags.get("threads") or 1, "num_gpus": 1}  # fmt: skip
        if flags.get("feature_cache") != "none":
            changed["feature_cache"] = "auto"  # a recorded folder is not written to
        known = self._known(flags)
        lost = [name for name, value in flags.items() if value and name not in known | set(UNSAID)]
        if lost:
            print(f"proof: {self.base} records settings that there are no longer: {', '.join(lost)}", file=sys.stderr)
        values = {**flags, **changed, **({"without": write_list(self.without)} if self._unwanted() else {})}
        return {name: value for name, value in values.items() if name in known}

    def _known(self, flags: Mapping[str, Any]) -> set[str]:
        method = str(flags.get("method") or "finetune")
        parser = run_flags.run_parser(self.session, "pretrain", ["--method", method])
        return {action.dest for action in parser._actions} - {"output_dir", "help", "help_all", "config"}

    def _unwanted(self) -> list[list[str]]:
        """[without], or [] in a domain whose pictures show one thing each."""
        return [list(self.without)] if "without" in self._known(self.stages[0]) else []


def _name(stage: int) -> str:
    return f"recipe{stage + 1 if stage else ''}.yaml"


def train(session: Session, row: Row) -> None:
    """Carries out a row of `References.rows` in this process, or waits for the process that already does."""
    while in_use(row.folder):
        time.sleep(POLL)
    if not row.done:
        trainer.train(session, row.words[3:], "pretrain")


def cost(session: Session, base: str) -> str:
    """What training a reference takes, in words, as far as that is recorded; or ""."""
    found, _ = recipe(session, Path(base))
    return f"; the base model took {found.seconds:.0f} s of one core" if found and found.seconds else ""
