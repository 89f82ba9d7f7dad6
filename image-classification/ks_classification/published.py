"""The published scripts' flags, translated: `train/exchange_fltf.py` and `train/exchange_fftl.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import cli
from common.config import Parser, help_formatter


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HONOURED = {
    "lr": "--lr", "min_lr": "--min-lr", "weight_decay": "--weight-decay", "num_workers": "--workers",
    "epochs": "--epochs", "batch_size": "--batch-size", "BND": "--bound", "alpha": "--sparsity-weight",
    "lora_rank": "--lora-rank", "outdir": "--output-dir", "resume": "--checkpoint", "learnpath": "--learn-data",
    "seed": "--seed",
}  # fmt: skip
WHOLE = ("epochs", "batch_size", "num_workers", "lora_rank", "seed")
SHORT = {"batch_size": "-b", "epochs": "-e", "resume": "-r", "workers_id": "-w", "data_mode": "-d", "net": "-n",
         "head": "-head"}  # fmt: skip
# Flags that the published scripts read but that had no effect, or that belong to other methods.
DEAD = _words(
    "data_mode net head lora_pos vit_depth warmup_epochs decay_epochs sched opt opt_eps opt_betas momentum lr_noise "
    "lr_noise_pct lr_noise_std warmup_lr cooldown_epochs patience_epochs decay_rate num_of_first_cls per_forget_cls "
    "l2_lambda ewc_lambda mas_lambda si_c n_fisher_sample LIRF_T LIRF_alpha sgda_smoothing sgda_gamma sgda_alpha "
    "sgda_learning_rate sgda_momentum sgda_weight_decay SCRUB_superepoch kd_T scrub_decay_epoch Lwf_T Lwf_lambda_kd "
    "Lwf_lambda_remain DER_lambda DER_plus_lambda FDR_lambda num_tasks wandb_group"
)
DEAD_SWITCHES = _words(
    "wandb_offline retrain one_stage ewc MAS si online replay l2 LIRF SCRUB Lwf Der DER_plus FDR ffn_open only_ffn"
)


def parser() -> Parser:
    """The published command line: every flag that its scripts and README name."""
    p = Parser(
        prog="exchange", description="The published script's flags; see image-classification/swap.py for ours.",
        formatter_class=help_formatter, allow_abbrev=False,
    )  # fmt: skip

    def flag(group, name: str, **settings: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        group.add_argument(*([SHORT[name]] if name in SHORT else []), *spellings, dest=name, **settings)

    data = p.add_argument_group("images: folders with train/<class>/ and test/<class>/")
    for name in ("learnpath", "forgetpath", "retainpath"):
        flag(data, name, required=True, help=f"the classes to {name.removesuffix('path')}")
    honoured = p.add_argument_group("honoured")
    flag(honoured, "workers_id", help="`cpu`, or GPU numbers")
    flag(
        honoured,
        "beta",
        type=float,
        help="weight of the keep loss when learning and of the forget loss when forgetting",
    )
    for name, ours in HONOURED.items():
        if name != "learnpath":
            kind = int if name in WHOLE else str if name in ("outdir", "resume") else float
            flag(honoured, name, type=kind, help=f"{ours} of swap.py")
    flag(honoured, "allow_chance", action="store_true", help="--allow-chance of swap.py (not published)")
    dead = p.add_argument_group("accepted without effect")
    for name in DEAD:
        flag(dead, name, help=" ", nargs="+" if name in ("opt_betas", "lr_noise") else None)
    for name in DEAD_SWITCHES:
        flag(dead, name, action="store_true", default=None, help=" ")
    return p


def translate(argv: list[str], order: str) -> tuple[list[str], list[str]]:
    """(flags of our swap.py, published flags that have no effect here)."""
    args = parser().parse_args(argv)
    given = {k: v for k, v in vars(args).items() if v is not None}
    ours = ["--reference", "--order", order, "--data", f"{args.retainpath},{args.forgetpath}"]
    for name, flag in HONOURED.items():
        if name in given:
            ours += [flag, str(given[name])]
    if "beta" in given:  # one published flag with two roles
        ours += ["--keep-weight", str(args.beta), "--forget-weight", str(args.beta)]
    if args.allow_chance:
        ours.append("--allow-chance")
    if args.workers_id is not None:
        numbers = args.workers_id.replace(",", " ").split()
        ours += ["--device", "cpu" if args.workers_id == "cpu" else f"cuda:{numbers[0]}" if numbers else "auto"]
    ours += ["--learn", ",".join(_classes(args.learnpath)), "--forget", ",".join(_classes(args.forgetpath))]
    return ours, [name for name in (*DEAD, *DEAD_SWITCHES) if name in given]


def _classes(root: str) -> list[str]:
    from ks_classification.data import folders

    return folders(root).classes


def main(order: str) -> None:
    """Runs the published command line through our swap.py and says which of its flags have no effect."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import swap

    def body(argv: list[str]) -> None:
        ours, ignored = translate(argv, order)
        if ignored:
            print(f"without effect here: {', '.join('--' + n for n in ignored)}", file=sys.stderr)
        swap.run(ours)

    sys.exit(cli.main(body))
