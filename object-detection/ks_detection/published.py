"""The published command lines, translated into ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

FLAGS = {  # published -> ours; a value is taken over
    "-c": "--config-file",
    "--config_file": "--config-file",
    "--pretrain_model_path": "--checkpoint",
    "--remain_path": "--retain-data",
    "--forget_path": "--forget-data",
    "--learn_path": "--learn-data",
    "--output_dir": "--output-dir",
    "--lora_rank": "--lora-rank",
    "--num_workers": "--workers",
    # GS-LoRA's CL-DETR scripts
    "--coco_path": "--data",
    "--resume": "--checkpoint",
    "--num_of_first_cls": "--num-of-first-cls",
    "--cls_per_phase": "--cls-per-phase",
    "--num_tasks": "--num-tasks",
    "--seed_cls": "--seed-cls",
    "--mem_rate": "--retain-fraction",
    "--forget_rate": "--forget-fraction",
    "--beta": "--forget-weight",
    "--alpha": "--sparsity-weight",
    "--cl_beta_list": "--forget-weights",
    "--epoch": "--epochs",
    "--batch_size": "--batch-size",
    "--clip_max_norm": "--clip",
    "--weight_decay": "--weight-decay",
}
SWITCHES = ("--save_log", "--find_unused_params", "--fix_size", "--debug", "--cache_mode")  # meaningless here
PASSED_OVER = ("--lora_pos", "--finetune_ignore", "--local_rank", "--local-rank")  # with their values
LISTS = ("--cl_beta_list",)  # published with blanks between the values


def tidy(argv: Sequence[str]) -> list[str]:
    """Our flags from published or own ones: `-c`, `--options a=1 b=2` with blanks, underscores, `--amp`."""
    result: list[str] = []
    options: list[str] = []
    tokens = [part for token in argv for part in _split(token)]
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        values = []
        while token.startswith("-") and position < len(tokens) and not tokens[position].startswith("-"):
            values.append(tokens[position])
            position += 1
        if token in SWITCHES or token in PASSED_OVER:
            print(f"note: {token} is not needed here and is passed over.", file=sys.stderr)
        elif token == "--amp":
            result += ["--precision", "fp16"]
        elif token == "--options":
            options += values
        elif token == "--no_aux_loss":
            options.append("aux_loss=False")
        elif token in LISTS:
            result += [FLAGS[token], ",".join(values)]
        else:
            result += [FLAGS.get(token, token), *values]
    return result + (["--options", " ".join(options)] if options else [])


def _split(token: str) -> list[str]:
    """`--flag=value` in two, where the flag is a published one."""
    name, equals, value = token.partition("=")
    return [name, value] if equals and name in (*FLAGS, *PASSED_OVER, "--options") else [token]


def main(order: str) -> None:
    """Runs swap.py with the published flags and an order."""
    import swap

    from common import cli

    sys.exit(cli.main(lambda argv: swap.run(["--order", order, *argv])))
