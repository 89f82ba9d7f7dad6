"""The demonstration: a detector that knows the digits 0-7 in scenes learns 8 and 9 and forgets 0 and 1.

Starts from weights/digits.pth (made by runs/pretrain_digits.sh), swaps in both orders, and writes one report whose
gallery shows the boxes before and after, with the precision-recall curves of every class.
"""

import argparse
import sys
import time
from pathlib import Path

import swap

from common import cli
from common.config import Parser, help_formatter

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights" / "digits.pth"
PICTURES = (
    "--data digits --no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 --crop 116,128 --test-size 128 "
    "--eval-batch 32"
)
SWAP = (
    f"{PICTURES} --learn 8,9 --forget 0,1 --steps 400 --forget-steps 150 --batch-size 8 --lr 2e-3 --schedule cosine "
    "--warmup 0.05 --clip 1.0 --lora-rank 16 --learn-weight 1.0 --forget-weight 0.3 --bound 8 --sparsity-weight 0.001 --gallery 3"
)


def main(argv: list[str]) -> None:
    """The demonstration from flags."""
    parser = Parser(prog="demo.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--output-dir", default="results/demo-detection", help="folder of the runs and of report.html")
    parser.add_argument("--seeds", type=int, default=1, help="number of repetitions of everything")
    parser.add_argument("--orders", default="fltf,fftl", help="which orders to run, comma separated")
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=True, help="start anew")
    args = parser.parse_args(argv)
    folder, began = Path(args.output_dir), time.monotonic()
    runs = []
    for seed in range(args.seeds):
        for order in args.orders.split(","):
            print(f"\n{order}, seed {seed}")
            runs.append(folder / f"{order}-seed{seed}")
            flags = ["--checkpoint", str(WEIGHTS), "--order", order, "--seed", str(seed), "--output-dir", str(runs[-1])]
            swap.run([*SWAP.split(), *flags, *(["--overwrite"] if args.overwrite else [])])
    from common import report

    report.write(runs, folder / "report.html", title="Knowledge swapping in scenes of handwritten digits")
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")


if __name__ == "__main__":
    sys.exit(cli.main(main))
