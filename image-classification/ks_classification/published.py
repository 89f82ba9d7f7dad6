"""The published scripts' flags, translated: `train/exchange_fltf.py` and `train/exchange_fftl.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from common import cli
from common.config import Parser

HONOURED = {
    "lr": "--lr", "min_lr": "--min-lr", "weight_decay": "--weight-decay", "num_workers": "--workers",
    "epochs": "--epochs", "batch_size": "--batch-size", "BND": "--bound", "alpha": "--sparsity-weight",
    "lora_rank": "--lora-rank", "outdir": "--output-dir", "resume": "--checkpoint", "learnpath": "--learn-data",
}  # fmt: skip
IGNORED = (
    "data_mode", "net", "head", "lora_pos", "vit_depth", "warmup_epochs", "decay_epochs", "sched", "opt", "wandb_group",
    "wandb_offline", "retrain", "cooldown_epochs", "decay_rate", "opt_eps", "opt_betas", "momentum", "seed",
)  # fmt: skip


def parser() -> Parser:
    """The published command line, as far as it had an effect or appears in the README."""
    p = Parser(description="The published script's flags; see image-classification/swap.py for ours.")
    for name in ("learnpath", "forgetpath", "retainpath"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("-b", "--batch_size", type=int)
    p.add_argument("-w", "--workers_id")
    p.add_argument("-e", "--epochs", type=int)
    p.add_argument("-d", "--data_mode")
    p.add_argument("-n", "--net")
    p.add_argument("-head", "--head")
    p.add_argument("-r", "--resume")
    for name in ("outdir", "lora_pos", "wandb_group", "sched", "opt"):
        p.add_argument(f"--{name}")
    for name in ("lr", "min-lr", "weight-decay", "BND", "beta", "alpha"):
        p.add_argument(f"--{name}", type=float)
    for name in ("warmup-epochs", "decay-epochs", "num_workers", "lora_rank", "vit_depth", "cooldown-epochs", "seed"):
        p.add_argument(f"--{name}", type=int)
    p.add_argument("--wandb_offline", action="store_true", default=None)
    p.add_argument("--retrain", action="store_true", default=None)
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
    if args.workers_id == "cpu":
        ours += ["--device", "cpu"]
    ours += ["--learn", ",".join(_classes(args.learnpath)), "--forget", ",".join(_classes(args.forgetpath))]
    return ours, [name for name in IGNORED if name in given]


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
