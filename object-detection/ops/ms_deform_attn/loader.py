"""Loads the compiled kernels, and says once which way is taken when there are none."""

import contextlib
import logging
import os
import threading

import torch

from ms_deform_attn import library

log = logging.getLogger("ms_deform_attn")
BUILD_COMMAND = "make op (or: python -m ms_deform_attn --build)"

_lock = threading.Lock()
_loaded: dict[str, object] = {}  # device -> namespace of torch.ops, or None
_reasons: dict[str, str] = {}  # device -> why there is none
_told: set[str] = set()
_choice = "auto"


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
    if device not in library.DEVICES:
        _reasons[device] = "there is no kernel for this device"
        return None
    path, _reasons[device] = library.find(device)
    if path is None and os.environ.get("KS_BUILD_OP") == "1":
        from ms_deform_attn.building import BuildError, build  # locks files, which not every system can

        try:
            path = build(device)
        except BuildError as error:
            _reasons[device] = f"the build failed: {str(error).splitlines()[0]}"
    if path is None:
        return None
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        _reasons[device] = f"{path} does not load: {error}"
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
