"""Where the picture lies that an annotation names."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGES = ("JPEGImages", "images", "Images", "imgs")  # usual names of their folder
TRAIN, TEST = ("train", "training", "trainval"), ("val", "valid", "validation", "test", "testing")  # words for parts


def parts_of(names: Collection[str]) -> tuple[str, str] | None:
    """Those of the names that stand for training and for test data, in letters of any case; None where one is missing."""
    found = {name.lower(): name for name in names}
    pair = [next((found[word] for word in words if word in found), None) for words in (TRAIN, TEST)]
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first of the names that is a folder in `root`, in letters of any case."""
    found = {place.name.lower(): place for place in sorted(root.iterdir()) if place.is_dir()} if root.is_dir() else {}
    return next((found[name.lower()] for name in names if name.lower() in found), None)


LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind, and no data: `.DS_Store`, `._a.png`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in LITTER


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose name fits in lower case, sorted, without hidden ones (macOS writes `._NAME` beside
    each file)."""
    return sorted(path for path in folder.rglob("*")
                  if fnmatchcase(path.name.lower(), pattern) and not is_hidden(path.name) and path.is_file())  # fmt: skip


def images_in(folder: Path) -> list[Path]:
    """The image files below a folder."""
    return [path for path in visible(folder, "*") if path.suffix.lower() in SUFFIXES]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Pictures:
    """The image files below some folders, found by what annotations call them.

    A stated path is never followed out of the folders: of `C:\\photos\\a.jpg` or `../photos/a.jpg` counts what follows
    the root. Its leading folders may be missing, letters may be of another case, and the ending may be another one.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in dict.fromkeys(path for folder in self.folders for path in images_in(folder)):
            for name in {_key(path.name), _key(path.stem)}:
                found.setdefault(name, []).append(path)
        return found

    @cached_property
    def all(self) -> list[Path]:
        """Every image file."""
        return list(dict.fromkeys(path for found in self._by_name.values() for path in found))

    def find(self, stated: str) -> Path:
        """The file; where there is none, or several fit equally well, the path that is missing."""
        parts = [part for part in stated.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if parts and parts[0].endswith(":"):
            del parts[0]
        if not parts:
            return self.folders[0] / "?"
        for start in range(len(parts)):
            for folder in self.folders:
                if (path := folder.joinpath(*parts[start:])).is_file():
                    return path
        for name in (parts[-1], Path(parts[-1]).stem):
            if len(found := self._by_name.get(_key(name), [])) == 1:
                return found[0]
        return self.folders[0].joinpath(*parts)

    def beside(self, file: Path) -> Iterator[Path]:
        """Image files with the stem of an annotation file, in its own folder."""
        return (path for path in self._by_name.get(_key(file.stem), ()) if path.parent == file.parent)
