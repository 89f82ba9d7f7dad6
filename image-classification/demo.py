"""The two-minute demonstration: eight handwritten digits known, two learned, two forgotten, six retained.

Pretrains a small vision transformer on all of scikit-learn's digits but 6 and 7, then learns these two and
forgets 0 and 1 in both orders, and writes one report that compares them.
"""

import argparse
import sys
import time
from pathlib import Path

import pretrain
import swap

from common import cli
from common.config import Parser, help_formatter

# A ViT of 0.3 M parameters on 16-pixel digits: 16 patches of 4 pixels. bf16 and more threads would only cost time.
MODEL = "--model vit_tiny_patch16_224 --img-size 16 --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4"
COMMON = "--data digits --no-flip --crop 0.7 --batch-size 64 --precision fp32 --threads 1"
PRETRAIN = f"{COMMON} {MODEL} --classes 0,1,2,3,4,5,8,9 --epochs 40 --lr 2e-3"
SWAP = f"{COMMON} --learn 6,7 --forget 0,1 --epochs 8 --lr 4e-3 --lora-position all --bound 5 --eval-every 2"


def main(argv: list[str]) -> None:
    """The demonstration from flags."""
    parser = Parser(prog="demo.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--output-dir", default="results/demo", help="folder of the runs and of report.html")
    parser.add_argument("--seeds", type=int, default=1, help="number of repetitions of everything")
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=True, help="start anew")
    args = parser.parse_args(argv)
    folder, began = Path(args.output_dir), time.monotonic()
    runs = [run for seed in range(args.seeds) for run in both_orders(folder, seed, args.overwrite)]
    from common import report

    report.write(runs, folder / "report.html", title="Knowledge swapping on handwritten digits")
    print(f"\n{time.monotonic() - began:.0f} s. Open {folder / 'report.html'} in a browser.")


def both_orders(folder: Path, seed: int, overwrite: bool) -> list[Path]:
    """Pretrains and swaps in both orders with one seed; the folders of the two swaps."""
    base = folder / f"base-seed{seed}"
    again = ["--overwrite"] if overwrite else []
    print(f"Pretraining a vision transformer on eight digits (seed {seed})")
    pretrain.run([*PRETRAIN.split(), "--seed", str(seed), "--output-dir", str(base), "--no-report", *again])
    runs = []
    for order, words in (
        ("fltf", "learn 6 and 7, then forget 0 and 1"),
        ("fftl", "forget 0 and 1, then learn 6 and 7"),
    ):
        print(f"\n{order}: {words} (seed {seed})")
        runs.append(folder / f"{order}-seed{seed}")
        flags = ["--checkpoint", str(base), "--order", order, "--seed", str(seed), "--output-dir", str(runs[-1])]
        swap.run([*SWAP.split(), *flags, *again])
    return runs


if __name__ == "__main__":
    sys.exit(cli.main(main))
