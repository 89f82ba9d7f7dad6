"""Bounds of the values of a config that a run would otherwise meet as an error of torch, or as endless work."""

from __future__ import annotations

from functools import reduce
from typing import Any

from common.errors import UserError
from common.images import MAX_SIDE
from ks_segmentation.config.defaults import leaf_values

LARGEST = 2**20  # of a number under MODEL
SIZE = (16, MAX_SIDE)
WEIGHTS = ("NO_OBJECT", "CLASS", "MASK", "DICE")  # of the terms of the loss
LIMITS: dict[str, tuple[float, float]] = {
    "INPUT.MIN_SIZE_TRAIN": SIZE, "INPUT.MAX_SIZE_TRAIN": SIZE, "INPUT.MIN_SIZE_TEST": SIZE, "INPUT.MAX_SIZE_TEST": SIZE,
    "INPUT.CROP.SIZE": SIZE, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": (1e-6, 1.0), "TEST.AUG.MIN_SIZES": SIZE,
    "TEST.AUG.MAX_SIZE": SIZE, "TEST.SLIDING_WINDOW": (32, MAX_SIDE), "MODEL.PIXEL_MEAN": (-1e4, 1e4),
    "MODEL.PIXEL_STD": (1e-6, 1e4), **{f"MODEL.MASK_FORMER.{name}_WEIGHT": (0, 1e4) for name in WEIGHTS},
    "MODEL.MASK_FORMER.DROPOUT": (0, 1), "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": (1, LARGEST),
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": (1, 100), "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": (0, 1),
}  # fmt: skip
COUNTS = {"INPUT.CROP.SIZE": 2, "MODEL.PIXEL_MEAN": 3, "MODEL.PIXEL_STD": 3}
OFF = {"TEST.SLIDING_WINDOW": 0}  # the value that switches something off
WORDS = {"INPUT.FORMAT": ("RGB", "BGR"), "INPUT.RANDOM_FLIP": ("none", "horizontal")}


def check(config: dict[str, Any]) -> None:
    """Raises UserError for the first value of a config that is outside its bounds."""
    for key, (least, most) in LIMITS.items():
        value = _at(config, key)
        values = value if isinstance(value, tuple) else (value,)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        count = COUNTS.get(key, max(1, len(values)))
        off = key in OFF and value == OFF[key]
        if not off and not (numbers and len(values) == count and all(least <= v <= most for v in values)):
            many = f"{count} values" if key in COUNTS else "values" if isinstance(value, tuple) else "a value"
            raise UserError(f"{key} takes {many} from {least:g} to {most:g}, got {value!r}.")
    for key, value in leaf_values(config.get("MODEL", {}), "MODEL."):
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise UserError(f"{key} takes a number of at most {LARGEST:,}, got {value!r}.")
    for key, words in WORDS.items():
        if _at(config, key) not in words:
            raise UserError(f"{key} must be {' or '.join(words)}, got {_at(config, key)!r}.")


def _at(config: dict[str, Any], key: str) -> Any:
    return reduce(lambda table, part: table[part], key.split("."), config)
