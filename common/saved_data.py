"""Data sets of Hugging Face's `datasets` library: what `save_to_disk` wrote, or by their name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, first_line


def read_dataset(name: str) -> dict[str, Any]:
    """Its parts by name; a data set without parts is "train". Raises UserError: it cannot be read."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"--data hf:{name} needs the datasets package: pip install datasets") from None
    try:
        data = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds
        raise UserError(f"cannot load the data set {name!r}: {first_line(error)}") from None
    return dict(data) if isinstance(data, Mapping) else {"train": data}


def column_of(part: Any, kind: str) -> str | None:
    """The first column of a feature of `datasets`, "Image" or "ClassLabel"."""
    return next((name for name, feature in part.features.items() if type(feature).__name__ == kind), None)


def undecoded(part: Any, column: str) -> Any:
    """The part with the pictures of a column as they are in their files."""
    import datasets

    return part.cast_column(column, datasets.Image(decode=False))


def encoded(rows: Any, index: int, column: str) -> bytes | Path:
    """A picture of an `undecoded` part, which is left on the disk until it is asked for."""
    found = rows[index][column]
    return found["bytes"] or Path(found["path"])
