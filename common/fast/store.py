"""Tensors by key, in files that only grow and that processes share."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from common.claim import alone
from common.errors import UserError

ENTRY = struct.Struct("<16sQQ")  # of the index: key, where its bytes begin, how many there are
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}
Header = list[tuple[str, list[int]]]  # type and shape of each tensor


class Store:
    """`name`.bin holds the tensors one after the other, `name`.idx says where.

    Bytes are written before their index entry, and by one process at a time, so that a killed process leaves nothing
    that is read. Files are read and written, not mapped: a mapped file that meets a full disk kills the process.

    Args:
        folder: of all stores; limit: bytes that all of them together may take. What finds no room is not kept.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.folder, self.name, self.limit = folder, name, limit
        self.full = False
        self.places: dict[bytes, tuple[int, int]] = {}
        self.seen = 0  # bytes of the index that were read
        _make_folder(folder)
        try:
            self.data, self.index = (self._open(ending) for ending in ("bin", "idx"))
        except OSError as error:
            raise _unwritable(folder, error) from None

    def _open(self, ending: str) -> int:
        return os.open(self.folder / f"{self.name}.{ending}", os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self) -> None:
        for name in ("data", "index"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def get(self, key: bytes) -> list[Tensor] | None:
        """The tensors of a key, or None where it has none, or where they are damaged."""
        if key not in self.places:
            self._look()
        if key not in self.places:
            return None
        start, size = self.places[key]
        return _tensors(os.pread(self.data, size, start), size)

    def put(self, found: Mapping[bytes, Sequence[Tensor]]) -> None:
        """Keeps the tensors of new keys while there is room; says once where there is none."""
        if self.full:
            return
        try:
            with alone(self.folder, f"{self.name}.lock"):
                self._look()
                self._append({key: _bytes(tensors) for key, tensors in found.items() if key not in self.places})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"`--feature-cache {self.folder}`: {error.strerror or error}.") from None
            self._stop("the disk is full")

    def _append(self, found: Mapping[bytes, bytes]) -> None:
        taken = sum(file.stat().st_size for file in self.folder.glob("*.bin"))
        end = max((start + size for start, size in self.places.values()), default=0)
        for key, content in found.items():
            if taken + len(content) > self.limit:
                self._stop(f"it holds {self.limit / 2**30:g} GiB (--feature-cache-gb)")
                return
            _write(self.data, content, end)
            _write(self.index, ENTRY.pack(key, end, len(content)), self.seen)
            self.places[key] = (end, len(content))
            self.seen, end, taken = self.seen + ENTRY.size, end + len(content), taken + len(content)

    def _stop(self, why: str) -> None:
        self.full = True
        print(
            f"feature cache {self.folder}: {why}; what is not in it is computed each time. It may be deleted at any time.",
            file=sys.stderr,
        )

    def _look(self) -> None:
        """Reads what other processes have added to the index."""
        fresh = os.pread(self.index, max(0, os.fstat(self.index).st_size - self.seen), self.seen)
        whole = len(fresh) - len(fresh) % ENTRY.size
        for key, start, size in ENTRY.iter_unpack(fresh[:whole]):
            self.places[key] = (start, size)
        self.seen += whole


def check_folder(folder: Path) -> None:
    """Raises UserError where a folder could not be made or written; makes none."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        number = errno.EACCES if there.is_dir() else errno.ENOTDIR
        raise _unwritable(folder, OSError(number, os.strerror(number)))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"`--feature-cache {folder}` cannot be written: {error.strerror or error}; name another folder.")


def _write(file: int, content: bytes, start: int) -> None:
    """All bytes of `content`; a full disk takes a part of them before it refuses the rest."""
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, start)
        view, start = view[count:], start + count


def _bytes(tensors: Sequence[Tensor]) -> bytes:
    """Header length, header, and the values of each tensor."""
    header = msgspec.msgpack.encode([(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in tensors])
    values = (t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors)
    return b"".join((struct.pack("<I", len(header)), header, *values))


def _tensors(content: bytes, size: int) -> list[Tensor] | None:
    try:
        if len(content) != size:
            return None
        (length,) = struct.unpack_from("<I", content)
        values, start, tensors = bytearray(content), 4 + length, []
        for kind, shape in msgspec.msgpack.decode(content[4:start], type=Header):
            count = torch.Size(shape).numel()
            tensors.append(torch.frombuffer(values, dtype=DTYPES[kind], count=count, offset=start).view(shape))
            start += count * DTYPES[kind].itemsize
        return tensors
    except (struct.error, msgspec.MsgspecError, KeyError, ValueError, RuntimeError):
        return None
