"""Every method forgets two of ten handwritten digits: a check of quality in a few minutes, not a benchmark.

python image-classification/runs/methods_digits.py --output-dir results/methods-digits
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import pretrain
import swap

from common import cli, methods
from common.config import Parser, help_formatter
from common.errors import UserError
from common.record import read_json
from common.report.runs import forgetting, read_run

MODEL = "--model vit_tiny_patch16_224 --img-size 16 --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4"
COMMON = "--data digits --no-flip --crop 0.7 --precision fp32 --threads 1 --batch-size 64 --gallery 0 --no-report"
FORGET = "--order forget --forget 0,1 --epochs 5"
RATE = {"adapter": 5e-3, "backbone": 3e-4, "all": 3e-4}  # learning rate by what trains
# where the default does not suit this model: gradient ascent is to be short, a random start needs longer
OWN = {
    "gradient_ascent": "--epochs 1 --lr 1e-4",
    "retrain": "--epochs 15 --lr 2e-3",
    "mas": "--penalty-weight 0.1",
    "scrub": "--max-share 0.5 --distil-weight 0.1",
    "scrub_s": "--distil-weight 0.1",
    "gs_lora": "--forget-weight 0.5",
    "gs_lora_pp": "--forget-weight 0.5",
    "replay": "--forget-weight 0.5",
}
SKIPPED = ("amnesiac", "amnesiac_der", "amnesiac_der_pp", "amnesiac_ewc", "amnesiac_lwf")  # unlearn what they learned


def main(argv: list[str]) -> None:
    """Pretrains once, runs the methods, prints the table."""
    parser = Parser(prog="methods_digits.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--output-dir", default="results/methods-digits", help="folder of the runs")
    parser.add_argument("--methods", default="", help="some methods only, comma separated")
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="start anew")
    args = parser.parse_args(argv)
    folder, again = Path(args.output_dir), ["--overwrite"] if args.overwrite else []
    base = folder / "base"
    pretrain.run([*f"{COMMON} {MODEL} --epochs 20 --lr 2e-3 --output-dir {base}".split(), *again])
    names = args.methods.split(",") if args.methods else [m for m in methods.available() if m not in SKIPPED]
    for name in names:
        kind = methods.load(name)
        flags = f"{COMMON} {FORGET} --checkpoint {base} --method {name} --lr {RATE[kind.scope(kind.Config())]}"
        try:
            swap.run([*f"{flags} {OWN.get(name, '')} --output-dir {folder / name}".split(), *again])
        except UserError as error:
            print(f"{name}: {error}")
    print(table([folder / name for name in names if (folder / name / "done.json").exists()]))


def table(folders: list[Path]) -> str:
    """Forget and retain accuracy before and after, H-mean, values that train, seconds of training; best H first."""
    rows = []
    for folder in folders:
        run = read_run(folder)
        before, after = run.moments[0].scores, run.moments[-1].scores
        found = forgetting(run, 1)
        rows.append((found.h_pretrained, f"| `{folder.name}` | {before['forget']:.1f} → {after['forget']:.1f} | "
                     f"{before['retain']:.1f} → {after['retain']:.1f} | {found.h_pretrained:.1f} | "
                     f"{run.config['parameters']['trainable']:,} | {read_json(folder / 'done.json')['seconds']:.1f} |"))  # fmt: skip
    head = "| method | forget (%) | retain (%) | H | trainable | seconds |\n|---|---:|---:|---:|---:|---:|"
    return "\n".join([head, *(text for _, text in sorted(rows, reverse=True))])


if __name__ == "__main__":
    sys.exit(cli.main(main))
