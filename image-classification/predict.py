"""Name what is on pictures: the top five classes of image files or of a folder, as a table or JSON."""

import argparse
import json
import sys
from pathlib import Path

from common import cli, devices, distributed, lora, precision
from common.config import Parser, help_formatter
from common.errors import UserError
from common.files import find_files

EXAMPLE = "Example:\n  python image-classification/predict.py results/base holiday/ cat.jpg --json"


def run(argv: list[str]) -> None:
    """Predictions from flags."""
    parser = Parser(prog="predict.py", description=f"{__doc__}\n\n{EXAMPLE}", formatter_class=help_formatter)
    parser.add_argument("model", help="folder of a finished run of swap.py or pretrain.py")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name, at most")
    parser.add_argument("--batch-size", type=int, default=32, help="images per forward pass")
    parser.add_argument("--checkpoint", default="", help="the base model, where it has moved since the run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave unreadable files out instead of stopping")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    for name in ("top", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(args, name)}.")
    answers = predict(args, find(args.images))
    if args.json:
        print(json.dumps(answers, indent=1))
        return
    width = max((len(a["file"]) for a in answers), default=0)
    for answer in answers:
        named = "  ".join(f"{t['class']} {100 * t['probability']:.1f} %" for t in answer["top"])
        print(f"{answer['file']:<{width}}  {named}")


def find(paths: list[str]) -> list[Path]:
    """The image files among files and folders. Raises UserError when there is none."""
    from ks_classification.data import SUFFIXES

    return find_files(paths, SUFFIXES, f"images ({', '.join(SUFFIXES[:4])}, ...)")


def predict(args: argparse.Namespace, files: list[Path]) -> list[dict]:
    """[{"file", "top": [{"class", "probability"}, ...]}, ...], most probable first."""
    import torch
    from ks_classification import models
    from ks_classification.data import Item
    from ks_classification.domain import ImageConfig
    from ks_classification.pixels import Pixels, read_pixels
    from ks_classification.session import config_of, load_run

    from common.streams import Draw

    model, spec, record = load_run(args.model, args.checkpoint)
    config = config_of(ImageConfig, record["flags"])
    config.skip_corrupt = args.skip_corrupt
    device = devices.choose_device(args.device, distributed.local_rank())
    good, images, bad = read_pixels([Item(str(f), "", str(f)) for f in files], spec.size, config, "reading images")
    for name in bad:
        print(f"left out: {name} is no readable image", file=sys.stderr)
    pixels = Pixels(good, images, [0] * len(good), spec, config)
    model, count = model.to(device), min(args.top, len(spec.classes))
    answers = []
    with torch.inference_mode(), lora.merged(model), precision.autocast(precision.choose("auto", device), device):
        for start in range(0, len(pixels), args.batch_size):
            batch = pixels[[Draw(i, None) for i in range(start, min(start + args.batch_size, len(pixels)))]]
            logits, _ = models.forward(model, batch.images.to(device))
            values, rows = logits.float().softmax(-1).topk(count)
            for name, shares, best in zip(batch.names, values.tolist(), rows.tolist(), strict=True):
                top = [{"class": spec.classes[r], "probability": p} for r, p in zip(best, shares, strict=True)]
                answers.append({"file": name, "top": top})
    return answers


if __name__ == "__main__":
    sys.exit(cli.main(run))
