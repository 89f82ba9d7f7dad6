"""References: the base model's recorded recipe again, without the forgotten classes, side by side, once for all runs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common import hub, run_flags, trainer
from common.claim import in_use
from common.errors import UserError
from common.record import read_run_config, write_text
from common.schema import read_json
from common.session import Session
from common.splits import write_list
from common.sweep.engines import POLL
from common.sweep.rows import Row

PLACE = "references"
COUNT = 3  # that a proof trains where nothing else is asked for
UNSAID = ("seed", "output_dir", "overwrite", "report", "config", "help_all", "gallery", "save_every", "device", "threads", "num_gpus",
          "tensorboard", "wandb", "classes")  # flags that do not say what a reference is  # fmt: skip


def recipe(session: Session, base: Path) -> tuple[dict[str, Any] | None, str]:
    """(flags of the pretraining run of a base model, or None, why it has none that starts from nothing)."""
    if not session.is_run(base):
        return None, f"{base} holds no record of how the base model was trained"
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
        return None, "the base model itself started from a checkpoint, which may have seen the classes"
    return flags, ""


@dataclass
class References:
    """Models of one recipe that know `classes`, with the seeds behind the base's own.

    folder: where proofs keep their work; the models lie beside the base model instead, where that can be written, under
        a hash of recipe and classes: every run of this base that forgets the same classes finds them.
    """

    session: Session
    flags: Mapping[str, Any]
    classes: Sequence[str]
    base: Path
    folder: Path

    @property
    def place(self) -> Path:
        """The folder of these models."""
        told = {name: value for name, value in self.flags.items() if name not in UNSAID}
        text = json.dumps([told, list(self.classes)], sort_keys=True, default=str)
        parent = self.base if os.access(self.base, os.W_OK) else self.folder
        return parent / PLACE / hashlib.sha256(text.encode()).hexdigest()[:12]

    def rows(self, count: int, *more: str) -> list[Row]:
        """The commands that train them; the first writes the recipe that they read. more: further flags."""
        changed = {"classes": write_list(self.classes), "report": False, "overwrite": False, "gallery": 0,
                   "save_every": 20.0, "threads": self.flags.get("threads") or 1, "num_gpus": 1}  # fmt: skip
        known = self._known()
        values = {name: value for name, value in {**self.flags, **changed}.items() if name in known}
        place, package = self.place, type(self.session).__module__.partition(".")[0]
        write_text(place / "recipe.yaml", yaml.safe_dump(values, allow_unicode=True))
        rows = []
        for seed in range(int(self.flags["seed"]) + 1, int(self.flags["seed"]) + count + 1):
            words = ("-m", package, "pretrain", "--config", str(place / "recipe.yaml"), "--seed", str(seed), *more)
            folder = place / f"seed{seed}"
            rows.append(Row(folder.name, folder.name, (*words, "--output-dir", str(folder)), folder))
        return rows

    def _known(self) -> set[str]:
        """The settings that `pretrain` takes; a record of an older version may hold others."""
        method = str(self.flags.get("method") or "finetune")
        parser = run_flags.run_parser(self.session, "pretrain", ["--method", method])
        known = {action.dest for action in parser._actions} - {"output_dir", "help", "help_all", "config"}
        lost = [name for name, value in self.flags.items() if value and name not in known | set(UNSAID)]
        if lost:
            print(f"proof: {self.base} records settings that there are no longer: {', '.join(lost)}", file=sys.stderr)
        return known


def train(session: Session, row: Row) -> None:
    """Carries out a row of `References.rows` in this process, or waits for the process that already does."""
    while in_use(row.folder):
        time.sleep(POLL)
    if not row.done:
        trainer.train(session, row.words[3:], "pretrain")


def cost(base: str) -> str:
    """What training a reference takes, in words, as far as the base's record tells; or ""."""
    path = Path(base) / "done.json"
    seconds = read_json(path).get("cpu_seconds") if path.exists() else None
    return f"; the base model took {seconds:.0f} s of one core" if seconds else ""
