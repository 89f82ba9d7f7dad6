"""`KEY value` words on a command line, and the settings of detectron2 that mean the same as a flag of ours."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import distributed
from common.config import Parser
from ks_segmentation.config.defaults import DEFAULTS, USED
from ks_segmentation.config.load import Config, in_pairs, load_config

KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
OTHER_ROOTS = ("GLOBAL",)
SET = ("--set", "--opts")
RANK = "MODEL.SEM_SEG_HEAD.LORA_RANK"
# The field of our flags that a setting fills.
FIELDS = {
    RANK: "lora_rank",
    "SOLVER.BASE_LR": "lr", "SOLVER.MAX_ITER": "steps", "SOLVER.WEIGHT_DECAY": "weight_decay",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "clip", "SOLVER.CLIP_GRADIENTS.ENABLED": "clip",
    "SOLVER.AMP.ENABLED": "precision", "SOLVER.IMS_PER_BATCH": "batch_size", "LEARN_ALPHA": "sparsity_weight",
    "LEARN_BETA": "learn_weight", "FORGET_BETA": "forget_weight", "FORGET_BND": "bound", "SEED": "seed",
    "OUTPUT_DIR": "output_dir",
}  # fmt: skip


def tidied(argv: Sequence[str]) -> list[str]:
    """The command line with its `KEY value` words, from the first key up to a flag or the end, as `--set KEY value`.

    Raises:
        UserError: a key without a value.
    """
    words = list(argv)
    keys = (i for i, word in enumerate(words) if _is_key(word) and (i == 0 or words[i - 1] not in SET))
    start = next(keys, len(words))
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    pairs = [part for key, value in in_pairs(words[start:end]) for part in (SET[0], key, value)]
    return [*words[:start], *pairs, *(tidied(words[end:]) if end < len(words) else [])]


def _is_key(word: str) -> bool:
    """Whether a word looks like a setting: `SOLVER.BASE_LR`, `SEED`, also with a mistake behind its table's name."""
    name = word.partition("=")[0]
    root, dot, _ = name.partition(".")
    if not KEY.fullmatch(name) or root not in (*DEFAULTS, *OTHER_ROOTS):
        return False
    return bool(dot) or not isinstance(DEFAULTS.get(root), dict)


def add_set(parser: Parser) -> None:
    """Adds `--set KEY value`, whose pairs are kept as one flat list `opts`."""
    parser.add_argument(
        *SET, nargs=2, action="extend", dest="opts", default=argparse.SUPPRESS, metavar=("KEY", "VALUE"),
        help="override a setting of --config-file, also as words at the end: SOLVER.BASE_LR 1e-3",
    )  # fmt: skip


def stated(argv: Sequence[str], words_only: bool = False) -> dict[str, object]:
    """Defaults of our flags by field name: what a swap's YAML file (LORA_RANK above 0) states, and what words state.

    words_only: just the latter.
    """
    peek = Parser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config-file", default="")
    peek.add_argument(*SET, nargs="+", action="extend", dest="opts", default=[])
    known, _ = peek.parse_known_args(list(argv))
    if not known.config_file and not known.opts:
        return {}
    config = load_config(known.config_file or None, known.opts)
    found = _values(config)
    if config.MODEL.SEM_SEG_HEAD.LORA_RANK > 0 and not words_only:
        return found
    return {field: found[field] for field in _fields(known.opts) if field in found}


def _values(config: Config) -> dict[str, object]:
    """What a config's settings say for our flags."""
    solver, clip = config.SOLVER, config.SOLVER.CLIP_GRADIENTS
    found: dict[str, object] = {
        "lr": solver.BASE_LR,
        "steps": solver.MAX_ITER,
        "weight_decay": solver.WEIGHT_DECAY,
        "clip": clip.CLIP_VALUE if clip.ENABLED else 0.0,
        "precision": "auto" if solver.AMP.ENABLED else "fp32",
        "learn_weight": config.LEARN_BETA,
        "forget_weight": config.FORGET_BETA,
        "bound": config.FORGET_BND,  # of the published loss, which is bounded as a whole
        "bound_per_item": False,
        "sparsity_weight": config.LEARN_ALPHA,
        "batch_size": max(1, solver.IMS_PER_BATCH // max(1, int(os.environ.get("WORLD_SIZE", 1)))),
    }
    if config.MODEL.SEM_SEG_HEAD.LORA_RANK > 0:
        found["lora_rank"] = config.MODEL.SEM_SEG_HEAD.LORA_RANK
    if config.SEED >= 0:  # below, detectron2 draws one
        found["seed"] = config.SEED
    if "OUTPUT_DIR" in config.given:
        found["output_dir"] = config.OUTPUT_DIR
    return found


def _fields(keys: Iterable[str]) -> set[str]:
    """The fields that the settings among `keys` fill."""
    fields = {FIELDS[key] for key in keys if key in FIELDS}
    return fields | ({"bound_per_item"} if "bound" in fields else set())


def tell_unused(flags: Mapping[str, Any]) -> None:
    """Prints one line about the settings that nothing reads, if the flags of a run name any."""
    words = flags.get("opts", ())
    if distributed.local_rank() or not (flags.get("config_file") or words):
        return
    config = load_config(flags.get("config_file") or None, words)
    read = set(FIELDS) if config.MODEL.SEM_SEG_HEAD.LORA_RANK > 0 else {RANK, *words}
    unused = [
        key
        for key in sorted(config.given)
        if key not in USED or (key in FIELDS and (key not in read or FIELDS[key] not in flags))
    ]
    if unused:
        print(f"settings without effect here: {', '.join(unused)}", file=sys.stderr)
