"""What a model's name and arguments may hold: sizes and switches, nothing that is fetched, opened or run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.errors import UserError

NAME = re.compile(
    r"[\w.-]+|torchvision/\w+|published/\w+|transformers/\w+"
)  # no scheme (hf-hub:, local-dir:), no path, no URL
# Arguments of timm and its helpers that open files, reach for the network or change what torch compiles.
FORBIDDEN = re.compile(
    r"(?<!drop_)path|file|url|uri|checkpoint|ckpt|pretrain|cache|hub|download|cfg|config|overlay|state_dict|weights"
    r"|script|export|jit"
)
LARGEST = 2**20
SIZES = ("_size", "_dim", "depth", "num_heads", "chans")  # endings of arguments that count something
WORD = re.compile(r"\w{0,40}")  # "avg", "token", "cosface"


def check_name(name: Any) -> None:
    """Raises UserError for a name that is no plain model name."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise UserError(
            f"{name!r} is no model name; only names that timm knows by itself are built, such as vit_base_patch16_224."
        )


def check_args(args: Any, what: str) -> None:
    """Raises UserError for arguments beyond sizes and switches.

    Args:
        what: where they come from, for the message.
    """
    if not isinstance(args, Mapping):
        raise UserError(f"{what}: the arguments of a model are name: value pairs, got {args!r}.")
    for name, value in args.items():
        if not re.fullmatch(r"[a-z]\w*", name) or FORBIDDEN.search(name):
            raise UserError(f"{what}: {name!r} is not allowed; only sizes and switches such as depth or img_size are.")
        if name.endswith(SIZES) and _number(value) and not isinstance(value, bool) and value < 1:
            raise UserError(f"{what}: {name} must be at least 1, got {value}.")
        if not _plain(value):
            raise UserError(
                f"{what}: {name} takes a number up to {LARGEST}, true, false, one word or a list of numbers, got {value!r}."
            )


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(map(_number, value))
    if isinstance(value, str):
        return bool(WORD.fullmatch(value))
    return value is None or isinstance(value, bool) or _number(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST
