"""The published scripts' command line, translated: `swapping_fltf.py` and its three sisters."""

from __future__ import annotations

import sys
from pathlib import Path

from common import cli
from common.config import Parser


def parser() -> Parser:
    """The published flags: detectron2's launcher and the four of the swap, `KEY value` words last."""
    p = Parser(
        description="The published script's flags; see semantic-segmentation/swap.py for ours.", allow_abbrev=False
    )
    p.add_argument("--config-file", required=True, metavar="FILE")
    p.add_argument("--learnsetname", choices=["voc", "pet", "coco", "sat"], required=True)
    for name in ("learnset", "forgetset", "retainset"):
        p.add_argument(f"--{name}", required=True, metavar="FOLDER")
    p.add_argument("--num-gpus", type=int, default=1)
    p.add_argument("--num-machines", type=int, default=1)
    p.add_argument("--machine-rank", type=int, default=0)
    p.add_argument("--dist-url", default="")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--eval-only", action="store_true")
    p.add_argument("opts", nargs="...", metavar="KEY value")
    return p


def translate(argv: list[str], order: str) -> tuple[list[str], list[str]]:
    """(flags of our swap.py, published flags that have no effect here).

    Raises:
        UserError: several machines (use torchrun), or --eval-only (use evaluate.py).
    """
    from common.errors import UserError

    args = parser().parse_args(argv)
    if args.eval_only:
        raise UserError("--eval-only: use semantic-segmentation/evaluate.py with the same flags.")
    if args.num_machines > 1:
        raise UserError("--num-machines: start swap.py with torchrun --nnodes on every machine.")
    ours = ["--reference", "--order", order, "--config-file", args.config_file, "--num-gpus", str(args.num_gpus)]
    for name in ("learnsetname", "learnset", "forgetset", "retainset"):
        ours += [f"--{name}", getattr(args, name)]
    words, rest = dict(zip(args.opts[::2], args.opts[1::2], strict=False)), list(args.opts)
    known = {"SOLVER.MAX_ITER": "--steps", "SOLVER.BASE_LR": "--lr", "OUTPUT_DIR": "--output-dir",
             "LEARN_ALPHA": "--sparsity-weight", "LEARN_BETA": "--learn-weight", "FORGET_BETA": "--forget-weight",
             "FORGET_BND": "--bound"}  # fmt: skip
    for key, flag in known.items():
        if key in words:
            ours += [flag, words[key]]
    if "SOLVER.IMS_PER_BATCH" in words:  # both published loaders draw so many over all ranks
        ours += ["--batch-size", str(max(1, int(words["SOLVER.IMS_PER_BATCH"]) // args.num_gpus))]
    ignored = [name for name in ("resume", "dist_url", "machine_rank") if getattr(args, name)]
    return [*ours, *rest], ignored


def main(order: str) -> None:
    """Runs the published command line through our swap.py and says which of its flags have no effect."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import swap

    def body(argv: list[str]) -> None:
        ours, ignored = translate(argv, order)
        if ignored:
            print(f"without effect here: {', '.join('--' + n.replace('_', '-') for n in ignored)}", file=sys.stderr)
        swap.run(ours)

    sys.exit(cli.main(body))
