"""The one place where pictures are opened: files and arrays of any kind become upright 8-bit RGB.

A file is turned as its own EXIF orientation says. Alpha is dropped, as torchvision's loaders do; CMYK, palette and
grey become RGB; of several frames the first is taken. Values of more than 8 bits are scaled by their range, see
`eight_bits`. What is larger than the limits below is refused before it is decoded.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from common.errors import UserError, first_line

MAX_PIXELS = 180_000_000
MAX_SIDE = 32_767
MAX_RATIO = 100  # longer side over shorter side
EMPTIEST = 1024  # pixels per byte of a JPEG: a block of 64 takes at least a bit
DRAFT = 2**24  # pixels: larger JPEG files are decoded at a fraction of their size where that is enough
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
LOSSY = ("JPEG", "MPO", "JPEG2000")  # no format for class ids

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused here, in one line
warnings.filterwarnings("ignore", "Corrupt EXIF data", module="PIL")  # the picture is whole; it counts as upright


class ImageError(UserError):
    """A picture that cannot be used; `reason` says why without its name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"image {name} cannot be read ({reason}); mend it or take it away.")
        self.reason = reason


def open_image(source: Any, name: str = "", least: int = 0, upright: bool = True) -> Image.Image:
    """The picture, upright, in 8-bit RGB.

    Args:
        source: a path, bytes of a file, a PIL image, an array [H, W] or [H, W, 1 to 4], or a tensor [C, H, W].
        name: how to call it in an error; default its path.
        least: the shorter side that is enough, in pixels; a very large JPEG is then decoded at a fraction of its size.
        upright: turned as its EXIF orientation says; else as its pixels lie.

    Raises:
        ImageError: missing, damaged, larger than the limits, or of values that have no 8-bit form.
    """
    with _told(name or (str(source) if isinstance(source, Path) else "in memory")) as refuse:
        if isinstance(source, Tensor):
            source = source.detach().cpu().float() if source.is_floating_point() else source.cpu()
            source = source.numpy().transpose(1, 2, 0) if source.ndim == 3 else source.numpy()
        if isinstance(source, np.ndarray):
            return _from_array(source, refuse)
        if isinstance(source, Image.Image):
            return _rgb(source, refuse)
        if not isinstance(source, Path | bytes):
            refuse(f"a picture is a PIL image, a uint8 array or a tensor, this is a {type(source).__name__}")
        with _opened(source, refuse) as image:
            _check_size(image.size, refuse)
            factor = min(image.size) // least if least and image.width * image.height > DRAFT else 1
            if factor > 1:
                image.draft(None, (image.width // factor, image.height // factor))
            return _rgb(image, refuse, upright)


def opened(files: Iterable[Path], skip_corrupt: bool) -> Iterator[tuple[Path, Image.Image]]:
    """Files with their pictures, in order; unreadable ones are named on stderr with `skip_corrupt`, else an ImageError."""
    for file in files:
        try:
            image = open_image(file)
        except ImageError as error:
            if not skip_corrupt:
                raise
            print(f"left out: {error}", file=sys.stderr)
        else:
            yield file, image


def open_ids(path: Path, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `read` makes of a mask file, whose pixels are class ids and must not have been changed by a lossy format.

    Raises:
        ImageError: missing, damaged, too large, JPEG, or of fractions.
    """
    with _told(str(path)) as refuse, _opened(path, refuse) as image:
        _check_size(image.size, refuse)
        if image.format in LOSSY:
            refuse(f"a mask in {image.format} has lost its class ids; use PNG")
        if image.mode == "F":
            refuse("a mask holds whole numbers, not fractions")
        return read(_upright(image))


def size_of(source: Path | bytes, name: str = "") -> tuple[int, int]:
    """(width, height) of the upright picture, from the header of a file or of its bytes. Raises ImageError."""
    with _told(name or str(source)) as refuse, _opened(source, refuse) as image:
        _check_size(image.size, refuse)
        return _upright_size(image)


def is_turned(path: Path) -> bool:
    """Whether a file's EXIF orientation swaps width and height."""
    with _told(str(path)) as refuse, _opened(path, refuse) as image:
        return image.getexif().get(0x0112) in TURNED


def probe(path: Path) -> tuple[int, int]:
    """`size_of`, of a file that was looked at as a whole: decoded, unless it is a JPEG that ends as one should.

    Raises:
        ImageError: missing, too large, or cut short.
    """
    with _told(str(path)) as refuse:
        size = _plain_jpeg(path)
        if size is not None:
            _check_size(size, refuse)
            _check_jpeg(size, path.stat().st_size, refuse)
            return size
    with _told(str(path)) as refuse, _opened(path, refuse) as image:
        _check_size(image.size, refuse)
        size = _upright_size(image)
        if image.format != "JPEG" or not _ends(path):
            image.load()
        return size


def _opened(source: Path | bytes, refuse: Callable[[str], None]) -> Image.Image:
    """The picture, undecoded; of the formats of photographs and masks only, for Pillow runs other programs for some."""
    if not isinstance(source, bytes) and not stat.S_ISREG(source.stat().st_mode):
        refuse("no file, but a folder, pipe or device")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    try:
        if image.format == "JPEG":
            _check_jpeg(image.size, len(source) if isinstance(source, bytes) else source.stat().st_size, refuse)
    except ImageError:
        image.close()
        raise
    return image


def _check_jpeg(size: tuple[int, int], count: int, refuse: Callable[[str], None]) -> None:
    """Refuses a JPEG whose header states more pixels than `count` bytes can hold."""
    if size[0] * size[1] > EMPTIEST * count:
        refuse(f"{size[0]} x {size[1]} pixels in {count:,} bytes; it is cut short")


def _plain_jpeg(path: Path) -> tuple[int, int] | None:
    """(width, height) of a JPEG file that ends as one should and has no EXIF, by its markers; None for any other file.

    Reading 20,000 files so takes a second; Pillow takes ten times as long. Source: ITU-T T.81, annex B.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(path, "rb", buffering=0) as file:
        head = file.read(8192)
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        if head[:2] != b"\xff\xd8" or b"\xff\xd9" not in file.read():
            return None
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        kind, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4])
        if kind in (0xC0, 0xC1, 0xC2):  # a frame: precision, height, width
            height, width = (int.from_bytes(head[at + i : at + i + 2]) for i in (5, 7))
            return width, height
        if kind not in (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE):  # tables, JFIF, Adobe and comments may come before
            return None
        at += 2 + length
    return None


def _ends(path: Path) -> bool:
    """Whether the last bytes of a JPEG file hold its end marker."""
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return b"\xff\xd9" in file.read()


@contextmanager
def _told(name: str) -> Iterator[Callable[[str], None]]:
    """Makes an ImageError of whatever goes wrong; Pillow's readers raise a dozen kinds for damaged files."""

    def refuse(reason: str) -> None:
        raise ImageError(name, reason)

    try:
        yield refuse
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name, "no image") from None
    except OSError as error:
        raise ImageError(name, error.strerror or first_line(error)) from None
    except Image.DecompressionBombError:
        raise ImageError(name, f"more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:
        raise ImageError(name, first_line(error)) from None


def _check_size(size: tuple[int, int], refuse: Callable[[str], None]) -> None:
    shown, (short, long) = f"{size[0]} x {size[1]} pixels", sorted(size)
    if short < 1:
        refuse(f"{shown}; it is empty")
    if long > MAX_SIDE or short * long > MAX_PIXELS:
        refuse(f"{shown}; at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side are read")
    if long > MAX_RATIO * short:
        refuse(f"{shown}; one side may be at most {MAX_RATIO} times the other")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        image.load()  # Pillow turns it then, and not before
    width, height = image.size
    return (height, width) if image.getexif().get(0x0112) in TURNED else (width, height)


def _upright(image: Image.Image) -> Image.Image:
    """The picture itself, or a turned copy where its EXIF orientation asks for one."""
    image.load()  # Pillow turns a TIFF itself then
    return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image


def _rgb(image: Image.Image, refuse: Callable[[str], None], upright: bool = True) -> Image.Image:
    _check_size(image.size, refuse)
    image = _upright(image) if upright else image
    if image.mode.startswith(("I", "F")):  # I;16 and its byte orders, I, F
        return _from_array(np.asarray(image), refuse)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(values: np.ndarray, refuse: Callable[[str], None]) -> Image.Image:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)):
        refuse(f"shape {values.shape}; a picture has height, width and 1 to 4 channels")
    _check_size(values.shape[1::-1], refuse)
    values = eight_bits(values, refuse)
    if values.ndim == 3 and values.shape[2] < 3:
        values = values[..., 0]  # grey, with or without alpha
    return Image.fromarray(np.ascontiguousarray(values[..., :3] if values.ndim == 3 else values)).convert("RGB")


def eight_bits(values: np.ndarray, refuse: Callable[[str], None]) -> np.ndarray:
    """Pixel values as uint8: 16-bit ones by their high byte, others by the smallest of the ranges that holds them all.

    Ranges: 0..1 (fractions only), 0..255, 0..65535. `refuse` is called for negative, larger or undefined values.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):
        refuse(f"values from {low:g} to {high:g}; scale them to 0..1, 0..255 or 0..65535")
    if values.dtype.kind in "iu":
        return (values if high <= 255 else values >> 8).astype(np.uint8)
    scale = 255 if high <= 1 else 1 if high <= 255 else 1 / 257
    return np.rint(values * scale).astype(np.uint8)


def png(image: Image.Image | np.ndarray) -> bytes:
    """A picture or an array as PNG. Level 6 of zlib: level 9 takes seven times as long for 4 % fewer bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
