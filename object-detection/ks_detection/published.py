"""The flags of the published programs (Knowledge Swapping's, and GS-LoRA's on CL-DETR), translated into ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.published import Translation, Values, translate

OPTIONS = "--options"
# Flags without effect here: logging, debugging, placement of adapters (always FFN), what torchrun does itself.
DEAD = "save_log find_unused_params fix_size debug cache_mode lora_pos finetune_ignore local_rank"


def _options(values: Values) -> list[str]:
    return [OPTIONS, " ".join(values)]


def _weights(values: Values) -> list[str]:
    return ["--forget-weights", ",".join(values)]


RULES = {
    **dict.fromkeys(DEAD.split()),
    "c": "--config-file", "config_file": "--config-file", "options": _options, "pretrain_model_path": "--checkpoint",
    "remain_path": "--retain-data", "forget_path": "--forget-data", "learn_path": "--learn-data",
    "output_dir": "--output-dir", "lora_rank": "--lora-rank", "num_workers": "--workers",
    "amp": lambda values: ["--precision", "fp16", *values],
    # CL-DETR
    "coco_path": "--data", "resume": "--checkpoint", "num_of_first_cls": "--num-of-first-cls",
    "cls_per_phase": "--cls-per-phase", "num_tasks": "--num-tasks", "seed_cls": "--seed-cls",
    "mem_rate": "--retain-fraction", "forget_rate": "--forget-fraction", "beta": "--forget-weight",
    "alpha": "--sparsity-weight", "cl_beta_list": _weights, "epoch": "--epochs", "batch_size": "--batch-size",
    "clip_max_norm": "--clip", "weight_decay": "--weight-decay",
    "no_aux_loss": lambda values: [OPTIONS, "aux_loss=False", *values],
}  # fmt: skip


def tidy(argv: Sequence[str]) -> list[str]:
    """Our flags from published or own ones; several `--options` become one. Says which flags have no effect."""
    ours, ignored = translate(argv, Translation(RULES))
    if ignored:
        print(f"without effect here: {', '.join(ignored)}", file=sys.stderr)
    options = []
    while OPTIONS in ours:
        at = ours.index(OPTIONS)
        options.append(ours[at + 1])
        del ours[at : at + 2]
    return ours + ([OPTIONS, " ".join(options)] if options else [])
