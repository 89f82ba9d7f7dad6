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


def usual_views(data: str, checkpoint: str) -> dict[str, Any]:
    """Defaults of `--augment`, `--flip` and `--crop`: those that the run folder under --checkpoint was trained with.

    Of other checkpoints nothing is known, and the flags keep their own defaults; digits are not mirrored.

    Raises:
        UserError: the record says something else than these flags can be.
    """
    mirrored = {"flip": False} if data.partition(":")[0] == "digits" else {}
    record = user_path(checkpoint) / "config.json"
    found: Any = None
    with contextlib.suppress(UserError, OSError, ValueError):  # whoever reads the checkpoint says what is wrong with it
        found = read_json(record) if checkpoint and record.is_file() else None
    identity = found.get("identity") if isinstance(found, dict) else None
    if not isinstance(identity, dict) or identity.get("domain") != "classification":
        return mirrored
    return msgspec.structs.asdict(typed(found.get("flags", {}), Views, f"{record} (flags)"))


def say_views(found: dict[str, Any], config: ImageConfig) -> None:
    """Says on stderr that these defaults are in force, where they are a base's and not those of --help."""
    theirs = len(found) > 1 and any(value != getattr(ImageConfig, name) for name, value in found.items())
    if theirs and all(getattr(config, name) == value for name, value in found.items()):
        crops = f"crops of {found['crop']:g} of the area or more, {'' if found['flip'] else 'no '}mirror images"
        how = crops if found["augment"] else "not at all"
        print(f"training images are augmented as those of the base were: {how}", file=sys.stderr)
