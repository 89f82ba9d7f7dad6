"""What a domain tells the commands: its flags, and how flags or a run folder become a model, data and a `Domain`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from common import adapters, distributed, onnx_file
from common.adapters.share import fetched
from common.config import Parser
from common.domain import Domain
from common.errors import UserError
from common.files import user_path
from common.hub import PREFIX, is_folder, is_hub
from common.plan import Plan, from_record
from common.record import read_run_config
from common.schema import read_json
from common.settings import Settings
from common.splits import resolve, shorten

Flags = Mapping[str, Any]


class Base(NamedTuple):
    """A model and the names of its class rows; `about` is what else the domain needs to build it again."""

    model: nn.Module
    classes: list[str]
    about: Any = None


class Opening(NamedTuple):
    """A run before its images are read: everything that can be wrong so far has been checked.

    domain: reads the images.
    """

    plan: Plan
    domain: Callable[[], Domain]


@dataclass
class Loaded:
    """A model that evaluate, predict and export work on.

    flags:  those of its run where there is one, then those given now.
    groups: of the run's plan; {} for a bare checkpoint.
    record: config.json of the run, or {}.
    """

    base: Base
    flags: dict[str, Any]
    groups: dict[str, tuple[str, ...]]
    record: dict[str, Any]

    @property
    def forgotten(self) -> list[str]:
        """The classes that the run, or one before it, has forgotten in the end; [] for a bare checkpoint."""
        return list(from_record(self.record["identity"]["plan"]).forgotten) if self.record else []

    def scored(self, offered: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The groups to be scored: those of the run; of a checkpoint all classes that the data offers, or --classes."""
        chosen = self.flags.get("classes", "")
        if self.groups and not chosen:
            return dict(self.groups)
        shared = [c for c in offered if c in self.base.classes]
        return {"chosen": tuple(resolve(chosen, shared, "--classes"))} if chosen else {"all": tuple(shared)}


class Answer(NamedTuple):
    """What the model says of one file: a line of text, the same for --json, and images by file ending."""

    file: str
    text: str
    data: dict[str, Any]
    images: dict[str, bytes] = {}


class Problem(NamedTuple):
    """Something wrong with data: its kind, where, what; `fatal` where a run would stop at it."""

    kind: str
    where: str
    text: str
    fatal: bool = True


class Session:
    """One per domain; a domain overrides what has no body here.

    name:      "classification"; also the folder under results/ and the end of the console command's name.
    summaries: verb -> one line for --help; examples: verb -> a command.
    source:    dataclass of flags that name model and data; view: of those that say how images are read.
    swap_flags, pretrain_flags, predict_flags, export_flags: further dataclasses of one verb.
    everyday:  flags of the domain that --help shows besides the common ones.
    defaults:  verb -> values that replace the fields' own.
    reference: YAML file of the published settings.
    data_flags: flags besides --data that name data; another --data takes their place.
    base_flags: flags that also reach a base model which is an earlier swap.
    shared_flags: flags that name weights from elsewhere with which a model trained from scratch begins.
    cache_flags: flags that name folders for caches, which a dry run does without.
    own_flags: flags that fetch or write something, so that a run folder's record of them is not followed.
    lists:     flags of several values, which are no texts.
    suffixes:  endings of image files.
    formats:   what `export` can write; see `own_format`.
    """

    name: str
    summaries: Mapping[str, str]
    examples: Mapping[str, str]
    source: type
    view: type
    swap_flags: tuple[type, ...] = ()
    pretrain_flags: tuple[type, ...] = ()
    predict_flags: tuple[type, ...] = ()
    everyday: Sequence[str] = ()
    defaults: Mapping[str, Mapping[str, object]] = {}
    reference: Path
    data_flags: Sequence[str] = ()
    base_flags: Sequence[str] = ()
    shared_flags: Sequence[str] = ()
    own_flags: Sequence[str] = ()
    cache_flags: Sequence[str] = ()
    lists: Sequence[str] = ()
    suffixes: Sequence[str] = ()
    formats: Sequence[str] = ()

    # ---- flags -------------------------------------------------------------------------------------------

    def tidy(self, argv: Sequence[str]) -> list[str]:
        """The command line with published spellings turned into ours."""
        return list(argv)

    def defaults_for(self, verb: str, argv: Sequence[str]) -> Mapping[str, object]:
        """Defaults of the flags of a verb, given the command line."""
        return self.defaults.get(verb, {})

    def run_kinds(self, verb: str) -> tuple[type, ...]:
        """The domain's dataclasses of flags of swap or pretrain."""
        return (*(self.swap_flags if verb == "swap" else self.pretrain_flags), self.source, self.view)

    def extend(self, parser: Parser, argv: Sequence[str]) -> None:
        """Adds to any verb's parser but check's what a dataclass cannot say; sets defaults that win over files."""

    # ---- runs --------------------------------------------------------------------------------------------

    def open_swap(self, settings: Settings) -> Opening:
        """The plan and the domain of a swap."""
        raise NotImplementedError

    def open_pretrain(self, settings: Settings) -> Opening:
        """The same of a run that trains a model on all classes, from scratch or from a checkpoint."""
        raise NotImplementedError

    # ---- models ------------------------------------------------------------------------------------------

    def base_model(self, flags: Flags) -> Base:
        """The pretrained model that the flags name, adapters of published swaps merged."""
        raise NotImplementedError

    def base(self, flags: Flags) -> Base:
        """`base_model`, or the model of an earlier swap, which is a base like any other: its adapter is merged."""
        path = str(flags.get("checkpoint") or "")
        if not path or not (Path(path) / "adapter").is_dir():
            return self.base_model(flags)
        if not self.is_run(path):
            raise UserError(f"{path} holds a result without its record (config.json); name the whole folder of a run.")
        base = self.load(path, {name: flags[name] for name in self.base_flags if name in flags}).base
        return base._replace(model=adapters.merge(base.model))

    def gone(self, flags: Flags) -> tuple[str, ...]:
        """`Plan.gone` of a run on the base that --checkpoint names: what that swap has forgotten; none where it is no swap."""
        folder = Path(str(flags.get("checkpoint") or "?"))
        found = [path for kind in ("adapter", "model") if (path := folder / kind / adapters.SWAP).is_file()]
        plan = read_json(found[0]).get("plan") if found else None
        gone = from_record(plan).forgotten if plan else ()
        if gone and distributed.is_main():
            print(f"forgotten by the base model's run, so neither retained nor trained on: {shorten(gone)}")
        return gone

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        """The model of a folder with whole weights (model/ of a run)."""
        raise NotImplementedError

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        """The model with rows for `classes`, the first of which it has."""
        raise NotImplementedError

    def without(self, base: Base, classes: Sequence[str]) -> Base | None:
        """The model without rows for `classes`; None where its layout must keep them. The model may be changed."""
        return None

    def is_run(self, path: str | Path) -> bool:
        """Whether a folder holds a run of ours; one of transformers has a config.json too."""
        return (Path(path) / "config.json").is_file() and not is_folder(path)

    def run_folder(self, path: str | Path) -> Path:
        """The folder of a run: a path, hf:FOLDER, or hf:NAME of a swap on the hub, which is fetched; of a model there it
        is a folder with the model's config alone."""
        text = str(path)
        local = user_path(text.removeprefix(PREFIX) if is_hub(text) else text)
        if not is_hub(text) or local.exists():
            return local if is_hub(text) else Path(text)
        return fetched(text.removeprefix(PREFIX), or_model=True)

    def joined(self, recorded: Flags, given: Flags) -> dict[str, Any]:
        """The flags of a run with those given now, which win; `fetch` and `fetch_model` tell whether data
        and a model of `--model hf:NAME` may be downloaded."""
        own = (*self.own_flags, "feature_cache")  # a path to write to
        recorded = {name: value for name, value in recorded.items() if name not in own}
        return {
            **recorded,
            "fetch": "data" in given,
            "fetch_model": "model" in given,
            **(dict.fromkeys(self.data_flags, "") if "data" in given else {}),
            **given,
        }

    def to_be_fetched(self, flags: Flags) -> str:
        """Data that a run with these flags would download; "" where all is here."""
        return ""

    def base_path(self, flags: Flags) -> str:
        """Where the base model that the flags name lies; "" where that is no path."""
        return str(flags.get("checkpoint") or "")

    def load(self, path: str | Path, given: Flags, model: nn.Module | None = None) -> Loaded:
        """The model of a finished run (its whole model, or base model, adapter and new rows), or of a checkpoint.

        Args:
            given: flags that win over the recorded ones.
            model: the base model, where the run was started from Python with one.

        Raises:
            UserError: nothing there, no result yet, or the base model has moved.
        """
        folder = self.run_folder(path)
        if not folder.exists():
            raise UserError(
                f"{path} is no run and no checkpoint: it does not exist; name the folder of a finished run."
            )
        if folder.suffix == onnx_file.ENDING:
            return self._of_file(folder, dict(given))
        if not self.is_run(folder):
            named = is_hub(str(path)) and not Path(str(path).removeprefix(PREFIX)).expanduser().exists()
            place = {"model": str(path), "checkpoint": ""} if named else {"checkpoint": str(folder)}
            flags = {**given, **place}
            return Loaded(self.base(flags), flags, {}, {})
        record = self.record_of(folder)
        flags = self.joined(record.get("flags", {}), given)
        groups = {name: tuple(classes) for name, classes in record["identity"]["plan"]["groups"].items()}
        if (folder / "model").is_dir() and model is not None:
            info = read_json(folder / "model" / adapters.SWAP)
            base = self.widened(self.given_model(model, flags), info["classes"])
            adapters.load_model(base.model, folder / "model")
        elif (folder / "model").is_dir():
            base = self.load_folder(folder / "model", flags)
        elif (folder / "adapter").is_dir():
            base = self._with_adapter(folder, given, model)
        else:
            raise UserError(f"{folder} has no result yet; finish the run with its own command first.")
        strange = [c for classes in groups.values() for c in classes if c not in base.classes]
        if strange:
            raise UserError(f"{folder / 'config.json'} names class {strange[0]!r}, which its result does not know.")
        base.model.eval()
        return Loaded(base, flags, groups, record)

    def record_of(self, folder: Path) -> dict[str, Any]:
        """config.json of a run.

        Raises:
            UserError: it is none, of another domain, its plan is none, or the result beside it was copied from another run.
        """
        record = read_run_config(folder)
        identity = record["identity"]
        if (domain := identity.get("domain", self.name)) != self.name:
            raise UserError(f"{folder} is a run of {domain}; take the command of that domain, `ks-{domain}`.")
        from_record(identity["plan"])
        for place in ("model", "adapter"):
            path = folder / place / adapters.SWAP
            info = read_json(path, advice=adapters.AGAIN) if path.exists() else None
            if isinstance(info, dict) and not adapters.belongs(info, identity):
                raise UserError(f"{folder / place} is of another run; the command of this one writes its own again.")
        return record

    def _of_file(self, path: Path, flags: dict[str, Any]) -> Loaded:
        file = onnx_file.OnnxFile(path)
        if file.task != self.name:
            raise UserError(f"{path} is a model for {file.task}; take the command of that domain.")
        seen = {name: value for name, value in file.flags.items() if name not in self.own_flags}
        return Loaded(
            self.from_graph(file), {**seen, **flags}, {g: tuple(names) for g, names in file.groups.items()}, {}
        )

    def load_base(self, folder: Path, given: Flags, model: nn.Module | None = None) -> Base:
        """The base model of a finished swap, without its adapter.

        Raises:
            UserError: no swap, its adapter is of another run, or the base has moved.
        """
        record = self.record_of(folder)
        flags = self.joined(record.get("flags", {}), given)
        path = self.base_path(flags) if model is None else ""
        if path and not user_path(path).exists():
            raise UserError(f"the base model of {folder}, {path}, is not there; name it with --checkpoint.")
        return self.base(flags) if model is None else self.given_model(model, flags)

    def _with_adapter(self, folder: Path, given: Flags, model: nn.Module | None) -> Base:
        base = self.load_base(folder, given, model)
        classes = adapters.read(folder / "adapter")[0]["classes"]
        rows = {name: row for row, name in enumerate(classes)}
        if moved := [name for row, name in enumerate(base.classes) if rows.get(name, row) != row]:
            raise UserError(
                f"the adapter of {folder} has class {moved[0]!r} in row {rows[moved[0]]}, its base in row "
                f"{base.classes.index(moved[0])}: it was made for another base, or for its rows in another order."
            )
        if len(classes) < len(base.classes):
            raise UserError(f"the adapter of {folder} knows {len(classes)} classes, its base {len(base.classes)}.")
        base = self.widened(base, classes)
        adapters.load(base.model, folder / "adapter")
        return base

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        """A model from Python with the names of its rows; the model itself is not changed.

        Raises:
            UserError: its rows have no names.
        """
        raise NotImplementedError

    # ---- what the other verbs do -------------------------------------------------------------------------

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        """The domain with test images, and the groups of classes to be scored."""
        raise NotImplementedError

    def need_data(self, flags: Flags) -> None:
        """Raises UserError where no flag names data."""
        if not any(flags.get(name) for name in ("data", *self.data_flags)):
            raise UserError(
                "which images? Give --data: a checkpoint has none, nor has a run that was started with objects."
            )

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        """The answers for image files, in order."""
        raise NotImplementedError

    def check(self, data: str) -> tuple[list[str], list[Problem]]:
        """(lines that describe the data, everything that is wrong with it)."""
        raise NotImplementedError

    def fix(self, data: str, output: str) -> list[str]:
        """Writes a cleaned copy of data into a new folder, which `check` finds no error in; lines that say what was done."""
        raise NotImplementedError

    def own_format(self, loaded: Loaded) -> str:
        """Which of `formats` the model is written in where none is named."""
        return self.formats[0]

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        """Writes the model, adapters merged, as one of `formats`; the file or folder written."""
        raise NotImplementedError

    def graph(self, loaded: Loaded) -> onnx_file.Graph:
        """The model, adapters merged, as an ONNX file is made of it."""
        raise NotImplementedError

    def from_graph(self, file: onnx_file.OnnxFile) -> Base:
        """Such a file in the place of a model, for `predict`."""
        raise NotImplementedError

    def export_onnx(self, loaded: Loaded, path: Path) -> Path:
        """Writes the model as ONNX, with its classes, those forgotten and the groups in the file's metadata.

        Raises:
            UserError: see `onnx_file.write`.
        """
        seen = {f.name for f in fields(self.view)} - {*self.own_flags}
        notes = {"task": self.name, "classes": loaded.base.classes, "forgotten": loaded.forgotten, "groups": loaded.groups,
                 "flags": {name: value for name, value in loaded.flags.items() if name in seen}}  # fmt: skip
        onnx_file.write(self.graph(loaded), path, notes)
        return path
