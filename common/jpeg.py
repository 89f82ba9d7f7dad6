"""Damage inside JPEG files: decoders go on at it with a warning, which Pillow does not show."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from common.images import ImageError, size_of
from common.progress import watched
from common.session import Problem

AT_ONCE = 32  # files decoded before libjpeg's words are looked at
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")  # in libjpeg's words


def damage(paths: Iterable[Path]) -> list[Problem]:
    """A note for every JPEG file whose decoder complains of damage; such a picture is part grey or shifted.

    Other files, and those that cannot be decoded at all, are passed over. Bytes that happen to decode cannot be found.
    """
    files = [path for path in dict.fromkeys(paths) if _starts(path)]
    pieces = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
    found = []
    for piece in watched(pieces, len(pieces), "looking inside JPEG files"):
        for path in piece if _complaint(piece) else ():  # libjpeg names no file: one by one
            words = _complaint([path])
            if words:
                text = f"is damaged inside ({words}); it is decoded as far as that goes"
                found.append(Problem("damaged image", str(path), text, fatal=False))
    return found


def _starts(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(2) == b"\xff\xd8"
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def _complaint(paths: Sequence[Path]) -> str:
    """The first that libjpeg says of damage while it decodes these files."""
    from torchvision.io import decode_jpeg

    def decode(path: Path) -> None:
        with contextlib.suppress(RuntimeError, ImageError):
            size_of(path)  # within the limits
            decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)))

    with _standard_error() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision points to TorchCodec
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, paths))
        lines = said().splitlines()
    return next((line.strip() for line in lines if line.startswith(DAMAGE)), "")


@contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """What C code writes to the standard error inside."""
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(own, 2)
            os.close(own)
