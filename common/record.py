"""The run folder. Files are written to a temporary name, then renamed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec

from common.claim import PART, Claim
from common.errors import UserError
from common.files import check_folder, read_data
from common.knobs import knob
from common.schema import checked_json, read_json, typed

METRICS, STEPS, DETAILS, REFERENCES = "metrics.jsonl", "steps.jsonl", "details.json", "references.json"
PROOF_MODELS = "references"  # folder in a base, or beside a run: models that a proof trained
NOTHING = "no object"  # the answer on an object that no prediction covers, in records of answers
PHASES = "phases"  # folder of the adapters as the phases but the last left them
FILES = (METRICS, STEPS, DETAILS, "state.pt", "gallery.json", "report.html", "done.json",
         "proof.json", "proof.html")  # fmt: skip
RESULTS = (
    *("adapter/swap.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"),
    "adapter/guard.safetensors",
    *("model/swap.json", "model/model.safetensors"),
)
Callback = Callable[[str, Mapping[str, Any]], None]


class Begun(msgspec.Struct):
    """config.json of anything that took a folder."""

    identity: dict[str, Any]


class PlanEntry(msgspec.Struct):
    """What config.json says of a plan, as far as it must be there."""

    groups: dict[str, list[str]]
    steps: list[tuple[str, list[str]]]
    name: str
    keep_until_forgotten: bool
    missing: list[str] = []
    gone: list[str] = []


class Identity(msgspec.Struct):
    """What config.json compares."""

    plan: PlanEntry


class RunConfig(msgspec.Struct):
    """config.json, as far as it must be there."""

    identity: Identity
    flags: dict[str, Any] = {}
    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    precision: str = "auto"


@dataclass
class RecordConfig:
    """Where results go."""

    output_dir: str = knob("", "folder of the run; default results/<domain>/<name of plan and method>")
    overwrite: bool = knob(False, "start anew in a folder that holds another run")
    report: bool = knob(True, "write report.html at the end")
    dry_run: bool = knob(False, "tell what the run would do, from a few steps on trial, and write nothing")
    tensorboard: bool = knob(False, "also write TensorBoard events (needs tensorboard)")
    wandb: str = knob("", "also log to this Weights & Biases project (needs wandb and your login)")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing: a temporary name in the same folder, then a rename."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # its mode is that of any new file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """The same of text in UTF-8; what has no such form, in the names of files, is written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Writes JSON, readable or on one line (`indent` None), atomically."""
    write_text(path, json.dumps(data, indent=indent, default=str) + "\n")


def save_tensors(path: Path, data: Any) -> None:
    """`torch.save`, atomically."""
    import torch  # the report, which reads records, needs none of it

    buffer = io.BytesIO()
    torch.save(data, buffer)
    write_bytes(path, buffer.getvalue())


def read_run_config(folder: Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError when it is none."""
    advice = "it is not the record of a run; name the --output-dir of a finished run"
    data: dict[str, Any] = checked_json(folder / "config.json", RunConfig, advice)
    return data


def name_of(identity: Mapping[str, Any]) -> str:
    """A short name of a run's identity, which its result carries: an adapter of another seed has another one."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_lines(path: Path, kind: Any = None) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a kill is left out.

    Args:
        kind: what every whole line must be readable as; without it, what follows the first damaged line is left out.

    Raises:
        UserError: a whole line is of another form.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(read_data(path).splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if kind is not None and (isinstance(record, dict) or line.endswith(b"\n")):
            typed(record, kind, f"{path}, line {number},", "the command of its run goes on from the last saved state")
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


class Run:
    """One run folder: config.json, metrics.jsonl, steps.jsonl, details.json, gallery.json, adapter/, state.pt, report.html."""

    def __init__(
        self, folder: str | Path, flags: Mapping[str, Any] | None = None, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.folder = Path(folder)
        self.flags = dict(flags or {})  # as given, so that evaluate.py can set the same things up again
        self.sinks: list[Any] = []
        self.callbacks = list(callbacks)  # told of every record at once
        self.claim: Claim | None = None  # from `open` to `close`

    def path(self, name: str) -> Path:
        """A file of this run."""
        return self.folder / name

    def open(self, identity: Mapping[str, Any], description: Mapping[str, Any], overwrite: bool) -> bool:
        """Claims the folder for a run; returns whether an earlier, unfinished or finished, run is continued.
        `close` gives it back.

        Args:
            identity: everything that changes the numbers; must equal that of the run found in the folder.
            description: versions, command, data; recorded, not compared.

        Raises:
            UserError: the folder holds another run (says what differs), another process works there, or it cannot be
                written.
        """
        if self.claim is None:
            claim = Claim(self.folder)
            try:
                claim.take()
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path("config.json"))) from None
            self.claim = claim
        try:
            return self._opened(identity, description, overwrite)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leaves the folder to others."""
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def _opened(self, identity: Mapping[str, Any], description: Mapping[str, Any], overwrite: bool) -> bool:
        for name in ("adapter", "model", PHASES):
            check_folder(self.path(name))
        config = self.path("config.json")
        identity = json.loads(json.dumps(identity, default=str))
        if config.exists() and self._begun() and not overwrite:
            self.check(identity)
            self._sweep()
            return True
        self._sweep()
        for name in (*FILES, *(RESULTS if self._begun() else ())):
            self.path(name).unlink(missing_ok=True)
        shutil.rmtree(self.path(PHASES), ignore_errors=True)
        write_json(config, {"identity": identity, "flags": self.flags, **description})
        return False

    def check(self, identity: Mapping[str, Any]) -> None:
        """Compares a run found in the folder, if any, with an identity or with some entries of it.

        Raises:
            UserError: another run is there; says what differs.
        """
        config = self.path("config.json")
        if not (config.exists() and self._begun()):
            return
        found, own = checked_json(config, Begun)["identity"], json.loads(json.dumps(identity, default=str))
        different = first_difference({key: found.get(key) for key in own}, own)
        if different:
            key, old, new = different
            raise UserError(
                f"{self.folder} holds a run with {key} {old!r}, this command has {new!r}; "
                f"choose another --output-dir, or add --overwrite to start anew there."
            )

    def _begun(self) -> bool:
        """Whether a score was ever written; a command that stopped before that left nothing worth keeping."""
        metrics = self.path(METRICS)
        return metrics.exists() and metrics.stat().st_size > 0

    def _sweep(self) -> None:
        """Takes away what a kill in the middle of a write left behind."""
        for folder in (self.folder, self.folder / "adapter", self.folder / "model", *self.path(PHASES).glob("*")):
            for path in folder.glob(f".*{PART}"):
                path.unlink(missing_ok=True)

    def append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records to a JSON-lines file in one write and tells the other loggers."""
        if self.claim is not None:
            self.claim.check()
        path, text = self.path(name), "".join(json.dumps(record, default=float) + "\n" for record in records)
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, before)  # no half line stays behind
            raise OSError(error.errno, error.strerror, str(path)) from None
        for sink in self.sinks:
            for record in records:
                sink(name, record)

    def tell(self, name: str, record: Mapping[str, Any]) -> None:
        """Hands a record of metrics.jsonl or steps.jsonl to the callbacks, before it is on disk."""
        for callback in self.callbacks:
            callback(Path(name).stem, record)

    def truncate(self, name: str, count: int) -> list[dict[str, Any]]:
        """Cuts a JSON-lines file back to its first `count` records, what came after the last saved state, and
        returns those.

        Raises:
            UserError: there are fewer, or they are damaged.
        """
        path = self.path(name)
        records = read_lines(path)
        if len(records) < count:
            raise UserError(
                f"{path} is damaged: {len(records)} whole lines where {count} were saved; add --overwrite to start anew."
            )
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)[:count]
            write_bytes(path, b"".join(lines))
        return records[:count]

    def save_details(self, phase: int, found: Mapping[str, Any], axes: Sequence[str]) -> None:
        """Stores figures, curves and answers of a phase's end (0: before) for the report, where a domain gives any.

        found: group -> `Evaluation`; axes: what its curves show.
        """
        groups = {}
        for group, e in found.items():
            if e.figures or e.curves or e.answers:
                curves = {name: [round(y, 4) for y in ys] for name, ys in e.curves.items()}
                groups[group] = {"figures": e.figures, "curves": curves, "answers": e.answers}
        if not groups:
            return
        path = self.path(DETAILS)
        details = read_json(path) if path.exists() else {}
        write_json(path, {**details, "axes": list(axes), str(phase): groups}, indent=None)

    def save_gallery(self, moment: str, items: list[Any]) -> None:
        """Stores the pictures and answers of one moment ("before", "1 learn", ...) for the report."""
        path = self.path("gallery.json")
        gallery = read_json(path) if path.exists() else {}
        gallery[moment] = pictures(items)
        write_json(path, gallery)


def pictures(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Gallery items as plain data."""
    return [{**item._asdict(), "picture": base64.b64encode(item.picture).decode()} for item in items]


def first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, old, new) of the first place where two JSON values differ, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(k for k in old if k not in new)]:
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if old == new else (key, old, new)


def environment() -> dict[str, Any]:
    """Versions, machine, commit and command, for config.json and the report."""
    from common.layers import fast  # needs torch, which a report that reads records does without

    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "transformers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions,
        "commit": commit or None,
        "fast_layers": fast is not None,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def open_sinks(run: Run, config: RecordConfig, name: str) -> None:
    """Attaches TensorBoard and Weights & Biases where asked for; neither is on by default."""
    if config.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the tensorboard package: pip install tensorboard") from None
        writer = SummaryWriter(str(run.folder / "tensorboard"))

        def to_tensorboard(file: str, record: Mapping[str, Any]) -> None:
            for key, value in flat_numbers(record):
                writer.add_scalar(f"{Path(file).stem}/{key}", value, record.get("step", 0))
            writer.flush()

        run.sinks.append(to_tensorboard)
    if config.wandb:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs the wandb package: pip install wandb") from None
        session = wandb.init(project=config.wandb, name=name, dir=str(run.folder))
        run.sinks.append(
            lambda file, record: session.log({f"{Path(file).stem}/{k}": v for k, v in flat_numbers(record)})
        )


def flat_numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of one record under readable names: the group's score, or each loss term."""
    if "score" in record:
        return [(f"{record.get('group', '')}", float(record["score"]))]
    if "sample" in record:
        return [(f"{group} (sample)", float(score)) for group, score in record["sample"].items()]
    return [
        (k, float(v)) for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "phase", "epoch")
    ]
