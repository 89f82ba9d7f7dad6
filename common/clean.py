"""Pictures written anew so that every tool reads the same: upright 8-bit RGB, JPEG or PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common.errors import UserError
from common.files import unused_name
from common.images import open_image, png
from common.record import write_bytes

ORIENTATION = 0x0112
COMMON = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}


def is_plain(path: Path) -> bool:
    """Whether a picture needs no rewriting: a JPEG or PNG in 8-bit RGB or grey that no tag turns, named as what it is."""
    with Image.open(path) as image:
        kind, mode, tag = image.format, image.mode, image.getexif().get(ORIENTATION, 1)
        return path.suffix.lower() in COMMON.get(kind or "", ()) and mode in ("RGB", "L") and tag == 1


class Copies:
    """Pictures copied into a new folder, each under a name of its own.

    rewritten: how many were not copied byte by byte.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises UserError: the folder is there already."""
        self.folder, self.rewritten = Path(folder), 0
        self._taken: set[Path] = set()
        if self.folder.exists():
            raise UserError(f"{folder} exists already; --fix writes a new folder.")

    def add(self, place: str, source: object, name: str, image: Callable[[], Image.Image] | None = None) -> Path:
        """Writes a picture below the folder; its path. A path that is plain is copied, anything else becomes a PNG.

        Args:
            place: subfolder; source: a path, or what `open_image` takes; image: gives the picture to be written
                instead of the source's upright one.
        """
        stem = Path(name).stem.replace(".", "_")  # a dot in a stem would be taken for an ending
        if image is None and isinstance(source, Path) and is_plain(source):
            suffix, data = source.suffix.lower(), source.read_bytes()
        else:
            suffix, self.rewritten = ".png", self.rewritten + 1
            data = png(image() if image else open_image(source, name))
        path = unused_name(self.folder / place / f"{stem}{suffix}", self._taken)
        write_bytes(path, data)
        return path
