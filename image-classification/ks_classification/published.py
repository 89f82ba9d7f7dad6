"""The published scripts' flags, translated: `train/exchange_fltf.py` and `train/exchange_fftl.py`."""

from __future__ import annotations

import sys

from common import cli, published
from common.errors import UserError
from common.published import Translation, Values, several
from ks_classification.data.images import folders
from ks_classification.session import SESSION

# Flags that the published scripts read but that had no effect, or that belong to other methods.
DEAD = (
    "data_mode d net n head lora_pos vit_depth warmup_epochs decay_epochs sched opt opt_eps opt_betas momentum lr_noise "
    "lr_noise_pct lr_noise_std warmup_lr cooldown_epochs patience_epochs decay_rate num_of_first_cls per_forget_cls "
    "l2_lambda ewc_lambda mas_lambda si_c n_fisher_sample LIRF_T LIRF_alpha sgda_smoothing sgda_gamma sgda_alpha "
    "sgda_learning_rate sgda_momentum sgda_weight_decay SCRUB_superepoch kd_T scrub_decay_epoch Lwf_T Lwf_lambda_kd "
    "Lwf_lambda_remain DER_lambda DER_plus_lambda FDR_lambda num_tasks wandb_group wandb_offline retrain one_stage ewc MAS "
    "si online replay l2 LIRF SCRUB Lwf Der DER_plus FDR ffn_open only_ffn"
)
RETAIN, FORGET = "--retain-folder", "--forget-folder"  # these two become --data


def _learn(values: Values) -> list[str]:
    return ["--learn-data", *values, "--learn", ",".join(folders(values[0]).classes)]


def _forget(values: Values) -> list[str]:
    return [FORGET, *values, "--forget", ",".join(folders(values[0]).classes)]


def _device(values: Values) -> list[str]:
    numbers = [number for value in values for number in value.replace(",", " ").split()]
    return ["--device", "cpu" if values == ["cpu"] else f"cuda:{numbers[0]}" if numbers else "auto"]


RULES = {
    **dict.fromkeys(DEAD.split()),
    "lr": "--lr", "min_lr": "--min-lr", "weight_decay": "--weight-decay", "num_workers": "--workers", "epochs": "--epochs",
    "e": "--epochs", "batch_size": "--batch-size", "b": "--batch-size", "BND": "--bound", "alpha": "--sparsity-weight",
    "lora_rank": "--lora-rank", "outdir": "--output-dir", "resume": "--checkpoint", "r": "--checkpoint", "seed": "--seed",
    "beta": several("--keep-weight", "--forget-weight"), "workers_id": _device, "w": _device, "learnpath": _learn,
    "forgetpath": _forget, "retainpath": RETAIN,
}  # fmt: skip


def translate(argv: list[str], order: str) -> tuple[list[str], list[str]]:
    """(flags of our swap.py, published flags that have no effect here).

    Raises:
        UserError: one of the three folders is not named.
    """
    ours, ignored = published.translate(argv, Translation(RULES, ("--reference", "--order", order)))
    places = []
    for word, name in ((RETAIN, "retain"), (FORGET, "forget")):
        if word not in ours or "--learn-data" not in ours:
            raise UserError(
                f"the published script takes --learnpath, --forgetpath and --retainpath; --{name}path is missing."
            )
        at = ours.index(word)
        places.append(ours.pop(at + 1))
        ours.pop(at)
    return [*ours, "--data", ",".join(places)], ignored


def main(order: str) -> None:
    """Runs the published command line through our swap and says which of its flags have no effect."""
    sys.exit(cli.main(lambda argv: published.run(SESSION, *translate(argv, order))))
