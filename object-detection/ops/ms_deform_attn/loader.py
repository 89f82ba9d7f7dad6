"""Finds, checks and loads the compiled kernels, and says once which way is taken when there are none."""

import contextlib
import hashlib
import json
import logging
import os
import platform
import threading
from pathlib import Path

import torch

log = logging.getLogger("ms_deform_attn")
PACKAGE = Path(__file__).parent
SOURCES = PACKAGE / "csrc"
BUILD_COMMAND = "make op (or: python -m ms_deform_attn --build)"
DEVICES = ("cpu", "cuda")

_lock = threading.Lock()
_loaded: dict[str, object] = {}  # device -> namespace of torch.ops, or None
_reasons: dict[str, str] = {}  # device -> why there is none
_told: set[str] = set()
_choice = "auto"


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


def native(device: str):
    """The compiled kernels for `device`, or None. Loads, and with KS_BUILD_OP=1 builds, on first use.

    Raises:
        RuntimeError: if `use_backend("compiled")` is in force and there are none.
    """
    if _choice == "reference":
        return None
    if device not in _loaded:
        with _lock:
            if device not in _loaded:
                _loaded[device] = _load(device)
    kernels = _loaded[device]
    if kernels is None:
        if _choice == "compiled":
            raise RuntimeError(
                f"ms_deform_attn has no compiled kernel for {device}: {_reasons[device]}. Run: {BUILD_COMMAND}"
            )
        if device not in _told:
            _told.add(device)
            log.warning(
                "ms_deform_attn uses plain PyTorch on %s (%s); for the compiled kernel run: %s",
                device,
                _reasons[device],
                BUILD_COMMAND,
            )
    return kernels


def _load(device: str):
    if device not in DEVICES:
        _reasons[device] = "there is no kernel for this device"
        return None
    library, _reasons[device] = find(device)
    if library is None and os.environ.get("KS_BUILD_OP") == "1":
        from ms_deform_attn.building import BuildError, build

        try:
            library = build(device)
        except BuildError as error:
            _reasons[device] = f"the build failed: {str(error).splitlines()[0]}"
    if library is None:
        return None
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        _reasons[device] = f"{library} does not load: {error}"
        return None
    return getattr(torch.ops, f"ms_deform_attn_{device}")


@contextlib.contextmanager
def use_backend(name: str):
    """Within the context: "compiled" insists on the kernel, "reference" avoids it, "auto" takes it if it is there.

    Raises:
        ValueError: for another name.
    """
    global _choice
    if name not in ("auto", "compiled", "reference"):
        raise ValueError(f"`name` must be auto, compiled or reference, got {name!r}.")
    before, _choice = _choice, name
    try:
        yield
    finally:
        _choice = before


def forget() -> None:
    """Return nothing; what was found so far is looked for again at the next use (after a build)."""
    for state in (_loaded, _reasons, _told):
        state.clear()
