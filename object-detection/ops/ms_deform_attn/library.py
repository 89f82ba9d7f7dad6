"""Where compiled kernels lie, and what they must have been built from to be loaded."""

import hashlib
import json
import os
import platform
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
SOURCES = PACKAGE / "csrc"
DEVICES = ("cpu", "cuda")


def key(device: str) -> dict[str, str]:
    """What a library must have been built from to be loaded here."""
    sources = sorted((SOURCES / device).iterdir())
    digest = hashlib.sha256(b"\0".join(path.name.encode() + path.read_bytes() for path in sources))
    return {"torch": torch.__version__, "machine": platform.machine(), "sources": digest.hexdigest()[:16]}


def folders() -> list[Path]:
    """Where libraries are looked for, best first: beside the package, then the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [PACKAGE / "lib", Path(cache) / "ms_deform_attn" / torch.__version__]


def find(device: str) -> tuple[Path | None, str]:
    """(library, "") if one for this torch and these sources is there, else (None, reason)."""
    reason = "not built"
    for folder in folders():
        library, manifest = folder / f"{device}.so", folder / f"{device}.json"
        if not (library.exists() and manifest.exists()):
            continue
        try:
            built, wanted = json.loads(manifest.read_text()), key(device)
        except (OSError, ValueError) as error:
            reason = f"{manifest} is unreadable: {error}"
            continue
        changed = [
            f"{name} was {built.get(name)}, is {wanted[name]}" for name in wanted if built.get(name) != wanted[name]
        ]
        if not changed:
            return library, ""
        reason = f"{library} is stale: {'; '.join(changed)}"
    return None, reason
