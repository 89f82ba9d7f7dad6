"""What a swap does to training images where its flags do not say: what was done to those of its base."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import msgspec

from common.errors import UserError
from common.files import user_path
from common.schema import read_json, typed
from ks_classification.data.pixels import ImageConfig


class Views(msgspec.Struct):
    """The flags of a base's record that say how its training images were augmented."""

    augment: bool = ImageConfig.augment
    flip: bool = ImageConfig.flip
    crop: Annotated[float, msgspec.Meta(gt=0, le=1)] = ImageConfig.crop


def mirrored(data: str) -> dict[str, bool]:
    """Digits are not mirrored; of other data nothing is said."""
    return {"flip": False} if data.partition(":")[0] == "digits" else {}


def usual_views(data: str, checkpoint: str) -> dict[str, Any]:
    """Defaults of `--augment`, `--flip` and `--crop`: those that the run folder under --checkpoint was trained with.

    Of other checkpoints nothing is known, and the flags keep their own defaults (see `mirrored`).

    Raises:
        UserError: the record says something else than these flags can be.
    """
    record = user_path(checkpoint) / "config.json"
    found: Any = None
    with contextlib.suppress(UserError, OSError, ValueError):  # whoever reads the checkpoint says what is wrong with it
        found = read_json(record) if checkpoint and record.is_file() else None
    identity = found.get("identity") if isinstance(found, dict) else None
    if not isinstance(identity, dict) or identity.get("domain") != "classification":
        return mirrored(data)
    return msgspec.structs.asdict(typed(found.get("flags", {}), Views, f"{record} (flags)"))


def say_views(data: str, config: ImageConfig) -> None:
    """Says on stderr how training images are augmented, where that is not as --help says: their base may have decided it."""
    usual = {**msgspec.structs.asdict(Views()), **mirrored(data)}
    if any(getattr(config, name) != value for name, value in usual.items()):
        crops = f"crops of {config.crop:g} of the area or more, {'' if config.flip else 'no '}mirror images"
        print(f"training images are augmented: {crops if config.augment else 'not at all'}", file=sys.stderr)
