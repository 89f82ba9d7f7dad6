"""The answers of a run's states to one picture: the base, and the model after each phase."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image

from common import adapters, devices, lora
from common.adapters.named import Named
from common.plan import from_record
from common.record import PHASES, read_run_config
from common.session import Loaded, Session
from common.teacher import share

BASE = "base"


class Panel(NamedTuple):
    """One state's answer: its title, the picture with the answer drawn in (or as it is), and the answer in words."""

    title: str
    picture: Image.Image
    text: str


class Panels:
    """The states of a run. One base model serves the adapters of all phases; a second one, without rows for the classes
    that were learned, is the base itself; both share the weights that no adapter changes.

    scalable: whether the states are adapters, whose strength can be set.
    """

    def __init__(self, session: Session, run: Path, given: Mapping[str, Any]) -> None:
        self.session, self.device, self._lock = session, devices.choose_device("auto", 0), Lock()
        record = read_run_config(run)
        self.scalable = (run / "adapter").is_dir()
        whole = session.load(run, given)
        base = session.load_base(run, given) if self.scalable else session.base(whole.flags)
        self._plain = self._ready(replace(whole, base=base))
        self._whole = self._ready(whole)
        phases = from_record(record["identity"]["plan"]).phases
        self._states = {f"after {phase.title}": run / PHASES / str(phase.index) for phase in phases[:-1]}
        self._states = {title: place for title, place in self._states.items() if place.is_dir()}
        self._states[f"after {phases[-1].title}"] = run / "adapter"
        if self.scalable:
            adapters.remove(self._whole.base.model)
            self._named = Named(self._whole.base.model, self._whole.base.classes)
            for title, place in self._states.items():
                self._named.add(title, place)
            rows = {name for place in self._states.values() for name in adapters.read(place)[0]["rows"]}
            share(self._plain.base.model, self._whole.base.model, rows)

    @property
    def titles(self) -> list[str]:
        """Of the panels, in order."""
        return [BASE, *self._states]

    def answers(self, picture: Image.Image, scale: float = 1.0) -> list[Panel]:
        """A panel per state.

        Args:
            scale: of the adapters' updates; 1 is as trained, 0 the base with the head rows of the adapter.
        """
        with self._lock, tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            file = Path(folder) / "picture.png"
            picture.save(file)
            found = [self._answer(BASE, self._plain, file)]
            for title in self._states:
                with self._on(title, scale):
                    found.append(self._answer(title, self._whole, file))
        return found

    def _ready(self, loaded: Loaded) -> Loaded:
        loaded.base.model.to(self.device).eval()
        return replace(loaded, flags={**loaded.flags, "output_dir": "."})  # so that answers come with pictures

    @contextmanager
    def _on(self, title: str, scale: float) -> Iterator[None]:
        if not self.scalable:
            yield
            return
        with self._named.using(title) as model:
            for layer in lora.adapters(model).values():
                layer.scale *= scale
            yield

    def _answer(self, title: str, loaded: Loaded, file: Path) -> Panel:
        answer = next(iter(self.session.predict(loaded, [file], self.device)))
        drawn = list(answer.images.values())[-1:] or [file.read_bytes()]
        return Panel(title, Image.open(io.BytesIO(drawn[0])).convert("RGB"), answer.text)
