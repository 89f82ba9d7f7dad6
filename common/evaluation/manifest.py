"""What a proof is about: SHA-256 of base, result, references and data, versions, the command to repeat it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from common.evaluation.subjects import Case
from common.record import environment
from common.schema import read_json

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".pkl")
STATE = "state.pt"  # of a run; holds an optimizer, not the result


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: Any) -> str:  # Python 3.10
    found = hashlib.sha256()
    for block in iter(lambda: file.read(2**20), b""):
        found.update(block)
    return found.hexdigest()


def weight_files(path: Path | None) -> dict[str, str]:
    """File name -> SHA-256 of the weights at a path: a file, or those of a run or model folder."""
    if path is None or not path.exists():
        return {}
    if path.is_file():
        return {path.name: file_digest(path)}
    places = [place for place in (path / "model", path / "adapter", path) if place.is_dir()]
    found = {p.relative_to(path).as_posix(): p for place in places for p in sorted(place.glob("*"))}
    return {n: file_digest(p) for n, p in found.items() if p.suffix in WEIGHTS and p.name != STATE and p.is_file()}


def data_digest(names: Iterable[str]) -> tuple[str, int]:
    """(SHA-256 of the sorted list of items, each with its size in bytes where it is a file; how many)."""
    lines = sorted(f"{n}\t{Path(n).stat().st_size}" if Path(n).is_file() else n for n in set(names))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest(), len(lines)


def items_of(folder: Path) -> list[str]:
    """Names of the items that a run recorded; [] where it recorded none. Raises UserError for a damaged record."""
    record = folder / "split.json"
    parts = read_json(record, dict[str, list[str]]) if record.exists() else {}
    return [name for part in parts.values() for name in part]


def manifest(case: Case, keys: Mapping[str, str], references: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """The part of proof.json that says what was attacked, with what, and how to repeat it; `names` are of `items_of`."""
    base = case.flags.get("checkpoint")
    digest, count = data_digest(names)
    about = environment()
    about["versions"] |= {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    return {
        "sha256": {
            "base": weight_files(Path(base)) if base else {},
            "result": weight_files(case.folder),
            "references": {place.name: weight_files(place) for place in references},
            "data": {"list": digest, "items": count} if names else None,
        },
        "keys": dict(keys),
        **{name: about[name] for name in ("command", "versions", "commit", "machine", "started")},
    }
