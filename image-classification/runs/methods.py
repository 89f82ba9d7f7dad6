"""Every method forgets the same classes of the same base model: the runs behind the tables of the README.

python image-classification/runs/methods.py digits --output-dir results/methods
python image-classification/runs/methods.py photos --table single --seeds 0,1,2 --images FOLDER --output-dir results/methods
python image-classification/runs/methods.py faces --table continual --seeds 0 --images FOLDER --output-dir results/methods

FOLDER holds tinyimagenet50/ or lfw62/ (train/<class>/, test/<class>/) and mobilenet_v2_imagenet1k.pth. Stopped? The
same command goes on where it was. Each run is a process of its own, so that its memory can be told.
"""

import argparse
import contextlib
import io
import multiprocessing
import sys
import time
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from ks_classification.session import SESSION
from methods_table import markdown, row_of
from methods_tuned import CHOSEN, GRIDS, LASSO

from common import cli, commands, methods, timing
from common.config import Parser, help_formatter
from common.errors import UserError
from common.record import write_json

PLANS = Path(__file__).parents[1] / "configs" / "plans"
# unlearns what it learned itself; a pretrained class it leaves as it is (see unlearning.py)
APART = ("amnesiac",)
NAMES = [name for name in methods.available() if name not in APART] + [row for row in GRIDS if "-" in row]
SETTLED = CHOSEN | LASSO
FAST = "--precision fp32 --threads 1 --gallery 0 --no-report"
STEM = (
    "--model hybrid_mobilenetv2 --model-args embed_dim=128,depth=4,num_heads=4 --label-smoothing 0.1 "
    "--stem-weights {images}/mobilenet_v2_imagenet1k.pth"
)


@dataclass(frozen=True)
class Setting:
    """Images, base model and plans of a table.

    data: flags of every command; base: of pretrain.py; swap: of swap.py; plans: table -> file in configs/plans, and flags;
    steps, retrain_steps: of a phase; Retrain sees all training images, the others the share of `swap`.
    """

    data: str
    base: str
    swap: str
    plans: dict[str, str]
    steps: int
    retrain_steps: int


SETTINGS = {
    "digits": Setting(
        "--data digits --no-flip --crop 0.7",
        "--model vit_tiny_patch16_224 --img-size 16 --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4 "
        "--batch-size 64 --epochs 20 --lr 2e-3",
        "--batch-size 32 --lora-rank 4",
        {"single": "digits_8_2", "continual": "digits_forgetting"},
        steps=100,
        retrain_steps=400,
    ),
    "photos": Setting(
        "--data {images}/tinyimagenet50 --cache-stem {out}/stem --stem-views 3 --crop 0.5",
        STEM + " --img-size 64 --batch-size 64 --epochs 10 --lr 1e-3",
        "--batch-size 32 --lora-rank 4 --retain-fraction 0.1",
        {"single": "photos_5_of_50", "continual": "photos_4x5_of_50 --forget-fraction 0.1"},
        steps=100,
        retrain_steps=1500,
    ),
    "faces": Setting(
        "--data {images}/lfw62 --cache-stem {out}/stem --stem-views 8 --crop 0.6",
        STEM + " --img-size 96 --batch-size 64 --epochs 30 --lr 1e-3",
        "--batch-size 32 --lora-rank 4",
        {"single": "faces_10_of_62", "continual": "faces_4x10_of_62"},
        steps=60,
        retrain_steps=800,
    ),
}


def main(argv: list[str]) -> None:
    """Pretrains once, runs the methods, writes the JSON and prints the table."""
    args = parsed(argv)
    setting, out = SETTINGS[args.setting], Path(args.output_dir) / args.setting
    plan, *own_flags = setting.plans[args.table].split()
    common = f"{prepared(setting, args.images, out)} --plan {PLANS / plan}.yaml {' '.join(own_flags)}"
    rows = []
    for seed, name in product(args.seeds.split(","), args.methods.split(",") if args.methods else NAMES):
        for number, own in enumerate(GRIDS.get(name, [""]) if args.tune else [SETTLED.get(name, "")]):
            folder = out / args.table / (f"{name}-{number}" if args.tune else name) / f"seed{seed}"
            size = f"--steps {setting.steps}"
            if name == "retrain":
                size = f"--steps {setting.retrain_steps} --batch-size 64 --retain-fraction 1 --forget-fraction 1"
            flags = f"{common} --guard none --method {name.partition('-')[0]} --seed {seed} {size} {own} --output-dir {folder}"
            if carried_out(flags.split(), folder):
                rows.append(row_of(folder) | {"method": name, "flags": own})
    if args.json:
        write_json(Path(args.json), {"setting": args.setting, "table": args.table, "rows": rows})
    print(markdown(rows))


def prepared(setting: Setting, images: str, out: Path, base: str = "base", classes: str = "") -> str:
    """Pretrains the base model, unless that was done before; the flags that all of its swaps share."""
    torch.set_num_threads(1)  # as --threads 1; a fork of a process with more of them hangs
    decode_once()
    places = {"images": images, "out": out}
    data = f"{setting.data.format(**places)} {FAST}"
    if not (out / base / "done.json").exists():
        chosen = ["--classes", classes] if classes else []
        commands.pretrain(
            SESSION, [*f"{data} {setting.base.format(**places)} --output-dir {out / base}".split(), *chosen]
        )
    return f"{data} {setting.swap} --checkpoint {out / base}"


@cache
def decode_once() -> None:
    """From now on an image that this process has decoded is not decoded again, here or in its forks."""
    from ks_classification import domain

    known, read = {}, domain.read_pixels

    def remembered(items: list, size: int, config: domain.ImageConfig, what: str) -> tuple[list, list, list]:
        new = [item for item in items if (item.name, size) not in known]
        good, images, bad = read(new, size, config, what) if new else ([], [], [])
        known.update({(item.name, size): image for item, image in zip(good, images, strict=True)})
        good = [item for item in items if (item.name, size) in known]
        return good, [known[item.name, size] for item in good], bad

    domain.read_pixels = remembered


@cache
def warm_up(flags: tuple[str, ...]) -> None:
    """Reads the images and loads the libraries of a run once, so that forks find them in memory."""
    SESSION.open_swap(commands.parsed(SESSION, "swap", flags)).domain()


def parsed(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="methods.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("setting", choices=list(SETTINGS), help="images and base model")
    parser.add_argument(
        "--table", choices=["single", "continual"], default="single", help="one forget phase, or several"
    )
    parser.add_argument("--seeds", default="0", help="comma separated")
    parser.add_argument("--methods", default="", help="some methods only, comma separated")
    parser.add_argument("--tune", action="store_true", help="run every candidate of methods_tuned.py instead")
    parser.add_argument("--images", default="", help="folder of the images; digits need none")
    parser.add_argument("--output-dir", default="results/methods", help="folder of the runs")
    parser.add_argument("--json", default="", help="also write the rows here")
    args = parser.parse_args(argv)
    if args.setting != "digits" and not Path(args.images or "?").is_dir():
        raise UserError(f"`--images` must be the folder of the images of {args.setting}, got {args.images!r}.")
    if unknown := [n for n in args.methods.split(",") if n and n not in SETTLED]:
        raise UserError(
            f"`--methods`: {unknown[0]} has no settings in methods_tuned.py; there are: {', '.join(SETTLED)}."
        )
    return args


def carried_out(flags: list[str], folder: Path) -> bool:
    """Runs swap.py in a forked process unless it was done before; whether there is a result.

    The child notes by how much its memory grew above that of the idle process, and its CPU time, which a busy machine
    hardly changes (Linux).
    """
    if not (folder / "cost.json").exists():
        warm_up(tuple(flags[: flags.index("--method")]))
        child = multiprocessing.get_context("fork").Process(target=_run, args=(flags, folder))
        child.start()
        child.join()
        if child.exitcode < 0:
            raise UserError(f"the run in {folder} was killed (signal {-child.exitcode}).")
    return (folder / "cost.json").exists()


def _run(flags: list[str], folder: Path) -> None:
    idle, began = timing.resident("VmRSS"), time.process_time()
    timing.reset_peak()
    with contextlib.redirect_stdout(io.StringIO()):
        code = commands.main(SESSION, "swap", flags)
    if code == 0:
        extra, used = timing.resident() - idle, time.process_time() - began
        write_json(folder / "cost.json", {"extra_mib": round(extra / 2**20, 1), "cpu_seconds": round(used, 1)})
    else:
        print(f"{folder}: exit code {code}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.main(main))
