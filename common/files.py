"""Files that a user names one by one or by folder."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError
from common.pictures import is_hidden

MAX_TEXT = 10_000_000  # bytes


def user_path(text: str | Path) -> Path:
    """A path as a user wrote it, `~` and `~name` replaced where such a home is known."""
    return Path(os.path.expanduser(text))


def check_regular(path: Path) -> None:
    """Raises UserError for a pipe, a device or a folder: reading one may never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file, but a {'folder' if path.is_dir() else 'pipe or device'}; name a file.")


def check_folder(path: Path) -> None:
    """Raises UserError for what is in the way of a folder to be written."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no folder; take it away, or choose another --output-dir.")


def read_data(path: Path) -> bytes:
    """The bytes of a file. Raises UserError: missing, or no file."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:  # a NUL in its name
        raise UserError(f"cannot read {str(path)!r}: {error}.") from None


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The text of a file that a user wrote. Raises UserError: missing, no file, no UTF-8 or more than `most` bytes."""
    if path.is_file() and path.stat().st_size > most:
        raise UserError(f"{path} is larger than a text of {most:,} bytes.")
    try:
        return read_data(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; write it anew.") from None


def find_files(paths: Sequence[str], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files among `paths` as they are, and those with one of the suffixes below its folders, sorted; not hidden ones.

    Args:
        suffixes: lower case, with the dot.
        what: how to call them in an error ("images (.jpg, .png)").

    Raises:
        UserError: a path that is not there, or a folder without any.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is no file or folder {path}.")
        found = (
            [path]
            if path.is_file()
            else sorted(
                p for p in path.rglob("*") if p.suffix.lower() in suffixes and not is_hidden(p.name) and not p.is_dir()
            )
        )
        if not found:
            raise UserError(f"{path} holds no {what}.")
        files += found
    return files


SAMPLED, PIECE = 64, 4096  # files and bytes that `fingerprint` reads


def fingerprint(paths: Iterable[Path], about: str = "") -> str | None:
    """Tells other files under the same names: the sizes of all, and first and last bytes of some, evenly spaced.

    Args:
        about: what else shall tell them apart, such as what is said of them.

    Returns:
        None where there is no file.
    """
    every = list(dict.fromkeys(paths))
    digest = hashlib.blake2b(about.encode(errors="surrogatepass"), digest_size=8)
    for path in every:
        digest.update(f"{path.stat().st_size} ".encode())
    for path in every[:: -(-len(every) // SAMPLED) or 1]:
        with path.open("rb") as file:
            digest.update(file.read(PIECE))
            file.seek(max(0, os.fstat(file.fileno()).st_size - PIECE))
            digest.update(file.read())
    return digest.hexdigest() if every else None


def unused_name(path: Path, taken: set[Path]) -> Path:
    """`path`, or with a number before its endings where it is taken already; notes the name as taken."""
    stem, _, ending = path.name.partition(".")
    names = (path.with_name(f"{stem}-{i}.{ending}" if i > 1 else path.name) for i in itertools.count(1))
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return free
