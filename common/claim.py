"""One run per folder: a lock file, on any file system, that a dead holder does not keep."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError

FILE = "run.lock"
LEASE, BEAT = 300.0, 20.0  # seconds: without a sign of life for so long the holder is dead; it gives one so often
WAIT = 0.2  # seconds between looks at a lock that is taken
PART = ".part"  # how names of files end that are still being written
JOBS = (("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"), ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
_held: set[str] = set()  # tokens of this process


class Claim:
    """A folder held by this process from `take` to `release`; a thread renews the sign of life, the file's time."""

    def __init__(self, folder: Path, name: str = FILE) -> None:
        self.folder, self.path, self.token = folder, folder / name, uuid.uuid4().hex
        self._over = threading.Event()

    def take(self) -> None:
        """Claims the folder, from a dead holder too.

        Raises:
            UserError: another process holds it.
            OSError: it cannot be written.
        """
        content = {"host": socket.gethostname(), "pid": os.getpid(), "job": _job(), "token": self.token}
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._placed(self.path, json.dumps(content)):
            pass  # what was in the way has just gone
        _held.add(self.token)
        threading.Thread(target=self._beat, daemon=True).start()

    def _placed(self, path: Path, text: str) -> bool:
        """Whether the file, whole from its first moment on, could be put there, or in the place of a dead holder's.

        Who replaces that file holds another one, named after the dead holder, so that only one process does. Raises
        UserError where the holder is alive.
        """
        handle, part = tempfile.mkstemp(dir=self.folder, prefix=f".{self.path.name}.", suffix=PART)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            _link(part, path, text)
            return True
        except FileExistsError:
            found = _read(path)
            if found and _alive(path, found):
                raise UserError(
                    f"{self.folder} is in use by process {found['pid']} on {found['host']}; wait until it has ended, or "
                    f"choose another --output-dir. (If it is no run any more: remove {self.path}.)"
                ) from None
            grave = path.with_name(f".{self.path.name}.{zlib.crc32(str(found.get('token')).encode()):08x}{PART}")
            if not found or not self._placed(grave, text):
                return False
            still = bool(_read(path).get("token") == found["token"])
            if still:
                os.replace(part, path)
            grave.unlink(missing_ok=True)
            return still
        except FileNotFoundError:  # swept by the holder
            return False
        finally:
            Path(part).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                if (_read(self.path) or {}).get("token") == self.token:
                    os.utime(self.path)

    def check(self) -> None:
        """Raises UserError where another process took the folder over, after this one stood still for too long."""
        if (_read(self.path) or {}).get("token") != self.token:
            raise UserError(f"another process took {self.folder} over while this one stood still; this one ends.")

    def release(self) -> None:
        """Gives the folder back."""
        self._over.set()
        if self.token in _held and (_read(self.path) or {}).get("token") == self.token:
            self.path.unlink(missing_ok=True)
        _held.discard(self.token)


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Inside, no other process is inside with the same folder and name; waits for its turn."""
    own = Claim(folder, name)
    while True:
        try:
            own.take()
            break
        except UserError:
            time.sleep(WAIT)
    try:
        yield
    finally:
        own.release()


def _link(part: str, path: Path, text: str) -> None:
    """Gives a whole file a second name that must be new; where a file system has no links, writes another file."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        with path.open("x") as file:
            file.write(text)


def in_use(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    found = _read(folder / FILE)
    return bool(found) and _alive(folder / FILE, found)


def _job() -> list[Any]:
    """Name of the job of a launcher or scheduler, and how often it was restarted; empty outside of one."""
    for name, count in JOBS:
        if os.environ.get(name, "none") != "none":
            return [os.environ[name], int(os.environ.get(count, 0))]
    return []


def _read(path: Path) -> dict[str, Any]:
    """The holder, or {} where there is none."""
    try:
        found: Any = json.loads(path.read_text()) if path.is_file() or not path.exists() else None
    except OSError:
        return {}
    except ValueError:
        found = None
    known = isinstance(found, dict) and {"host", "pid", "token"} <= set(found)
    return found if known else {"host": "an unknown machine", "pid": "?", "token": ""}  # a damaged file


def _alive(path: Path, found: dict[str, Any]) -> bool:
    before, now = found.get("job") or [], _job()
    if before and now and before[0] == now[0] and before[1] < now[1]:
        return False  # an earlier start of this very job, on whichever machine
    if found["host"] == socket.gethostname():
        if found["pid"] == os.getpid():
            return found["token"] in _held
        if os.name == "posix" and not exists(found["pid"]):
            return False
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:  # its time is told by the clock that told the lock's
            return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime < LEASE
    except FileNotFoundError:
        return False


def exists(pid: Any) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        pass
    return True
