"""The flags that swap.py and pretrain.py share, and starting one process per GPU."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.config import Parser
from common.errors import UserError
from ks_segmentation.config import load_config

REFERENCE = Path(__file__).parent.parent / "configs" / "reference.yaml"
# What suits segmentation where no config says otherwise.
DEFAULTS = {
    "batch_size": 4, "lr": 1e-3, "clip": 1.0, "bound": 5.0, "sparsity_weight": 0.01, "learn_weight": 0.9,
    "forget_weight": 1.0,
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
    found = {**DEFAULTS, **from_config(argv), **defaults}
    parser = cli.swap_parser(prog, description, configs, argv, REFERENCE, **found)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY value", help="overrides of --config-file, last")
    return parser, configs


def from_config(argv: Sequence[str]) -> dict[str, object]:
    """Defaults of our flags that a swap's YAML file states, by field name."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config-file", default="")
    known, _ = peek.parse_known_args(list(argv))
    if not known.config_file:
        return {}
    config = load_config(known.config_file)
    if config.MODEL.SEM_SEG_HEAD.LORA_RANK < 1:
        return {}
    clip = config.SOLVER.CLIP_GRADIENTS
    return {
        "lora_rank": config.MODEL.SEM_SEG_HEAD.LORA_RANK,
        "lr": config.SOLVER.BASE_LR,
        "steps": config.SOLVER.MAX_ITER,
        "weight_decay": config.SOLVER.WEIGHT_DECAY,
        "clip": clip.CLIP_VALUE if clip.ENABLED else 0.0,
        "precision": "auto" if config.SOLVER.AMP.ENABLED else "fp32",
        "learn_weight": config.LEARN_BETA,
        "forget_weight": config.FORGET_BETA,
        "bound": config.FORGET_BND,  # of the published loss, which is bounded as a whole
        "bound_per_item": False,
        "sparsity_weight": config.LEARN_ALPHA,
        "batch_size": max(1, config.SOLVER.IMS_PER_BATCH // max(1, int(os.environ.get("WORLD_SIZE", 1)))),
    }


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
