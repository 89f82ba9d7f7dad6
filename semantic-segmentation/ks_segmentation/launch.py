"""The flags that swap.py and pretrain.py share, and starting one process per GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import cli, distributed
from common.config import Parser
from common.errors import UserError
from ks_segmentation.config import Config, load_config
from ks_segmentation.config_defaults import DEFAULTS, RENAMED, USED, leaves

REFERENCE = Path(__file__).parent.parent / "configs" / "reference.yaml"
# What suits segmentation where no config says otherwise.
OURS = {
    "batch_size": 4, "lr": 1e-3, "clip": 1.0, "bound": 5.0, "sparsity_weight": 0.01, "learn_weight": 0.9,
    "forget_weight": 1.0,
}  # fmt: skip
# The field of our flags that a setting fills.
RANK = "MODEL.SEM_SEG_HEAD.LORA_RANK"
FIELDS = {
    RANK: "lora_rank",
    "SOLVER.BASE_LR": "lr", "SOLVER.MAX_ITER": "steps", "SOLVER.WEIGHT_DECAY": "weight_decay",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "clip", "SOLVER.CLIP_GRADIENTS.ENABLED": "clip",
    "SOLVER.AMP.ENABLED": "precision", "SOLVER.IMS_PER_BATCH": "batch_size", "LEARN_ALPHA": "sparsity_weight",
    "LEARN_BETA": "learn_weight", "FORGET_BETA": "forget_weight", "FORGET_BND": "bound", "SEED": "seed",
    "OUTPUT_DIR": "output_dir",
}  # fmt: skip


def swap_parser(
    prog: str, description: str, argv: Sequence[str], **defaults: object
) -> tuple[Parser, tuple[type, ...]]:
    """(parser, the domain's configs): a swap's flags and `KEY value` words at the end.

    A swap config (LORA_RANK above 0) among `argv` sets the defaults of the flags that mean the same.
    """
    from ks_segmentation.domain import MaskConfig
    from ks_segmentation.session import SourceConfig

    configs = (SourceConfig, MaskConfig)
    stated = from_config(argv)
    parser = cli.swap_parser(prog, description, configs, argv, REFERENCE, **{**OURS, **stated, **defaults})
    known = {action.dest for action in parser._actions}
    for field in _fields(_config_and_words(argv)[1]) & stated.keys() & known:  # words win over files
        parser.set_defaults(**{field: stated[field]})
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY value", help="overrides of --config-file, last")
    return parser, configs


def from_config(argv: Sequence[str]) -> dict[str, object]:
    """Defaults of our flags by field name: what a swap's YAML file states, and what the `KEY value` words state."""
    config, words = _config_and_words(argv)
    if config is None:
        return {}
    rank, solver, clip = config.MODEL.SEM_SEG_HEAD.LORA_RANK, config.SOLVER, config.SOLVER.CLIP_GRADIENTS
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
    if config.SEED >= 0:  # below, detectron2 draws one
        found["seed"] = config.SEED
    if "OUTPUT_DIR" in config.given:
        found["output_dir"] = config.OUTPUT_DIR
    if rank > 0:
        return {"lora_rank": rank, **found}
    return {field: found[field] for field in _fields(words) if field in found}


def _config_and_words(argv: Sequence[str]) -> tuple[Config | None, list[str]]:
    """The config that `argv` describes, if it does, and its `KEY value` words, from the first known key on."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config-file", default="")
    file = peek.parse_known_args(list(argv))[0].config_file
    keys = {*leaves(DEFAULTS), *RENAMED}
    words = list(argv)[next((i for i, word in enumerate(argv) if word in keys), len(argv)) :]
    return (load_config(file or None, words) if file or words else None), words


def _fields(keys: Iterable[str]) -> set[str]:
    """The fields that the settings among `keys` fill."""
    fields = {FIELDS[key] for key in keys if key in FIELDS}
    return fields | ({"bound_per_item"} if "bound" in fields else set())


def tell_unused(parser: Parser, argv: Sequence[str]) -> None:
    """Prints one line about the settings in `argv` and its config file that nothing reads, if there are any."""
    config, words = _config_and_words(argv)
    if config is None or not distributed.is_main():
        return
    read = set(FIELDS) if config.MODEL.SEM_SEG_HEAD.LORA_RANK > 0 else {RANK, *words}
    known = {action.dest for action in parser._actions}  # a method may lack some of the fields
    unused = [
        key
        for key in sorted(config.given)
        if key not in USED or (key in FIELDS and (key not in read or FIELDS[key] not in known))
    ]
    if unused:
        print(f"settings without effect here: {', '.join(unused)}", file=sys.stderr)


def started_ranks(script: str, argv: Sequence[str], count: int) -> bool:
    """Starts `count` processes of this command with torch's own launcher and waits for them; False if there is
    nothing to start (one process, or this is already one of them).

    Raises:
        UserError: `count` is below 1, or a process failed.
    """
    if count < 1:
        raise UserError(f"`--num-gpus` must be at least 1, got {count}.")
    if count == 1 or "WORLD_SIZE" in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--standalone", f"--nproc-per-node={count}", script, *argv])
    except ChildFailedError:
        raise UserError("one of the processes stopped with an error; its message is above.") from None
    return True
