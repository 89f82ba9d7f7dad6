"""Score a finished run again, on its own groups of classes: the same numbers as in its report."""

import argparse
import json
import sys

from common import cli, devices, distributed, lora, precision
from common.config import Parser, help_formatter

EXAMPLE = "Example:\n  python image-classification/evaluate.py results/classification/fltf-gs_lora-seed0"


def run(argv: list[str]) -> None:
    """Scores from flags."""
    import torch

    parser = Parser(prog="evaluate.py", description=f"{__doc__}\n\n{EXAMPLE}", formatter_class=help_formatter)
    parser.add_argument("run", help="folder of a finished run of swap.py or pretrain.py")
    parser.add_argument("--data", default="", help="other images of the same classes; default the run's own")
    parser.add_argument("--checkpoint", default="", help="the base model, where it has moved since the run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", default="run", choices=["run", "auto", *precision.PRECISIONS], help="run: what the run used"
    )
    parser.add_argument(
        "--eval-margin", action="store_true", help="score faces with the head's margin (the published face numbers)"
    )
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="leave unreadable images out instead of stopping (--data)"
    )
    parser.add_argument(
        "--per-class", action=argparse.BooleanOptionalAction, default=True, help="also one line per class"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    device = devices.choose_device(args.device, distributed.local_rank())
    model, domain, groups, record = _load(args)
    chosen = record["precision"] if args.precision == "run" else args.precision
    model = model.to(device)
    torch.set_num_threads(record.get("threads") or torch.get_num_threads())  # sums in another order differ
    with torch.inference_mode(), lora.merged(model), precision.autocast(precision.choose(chosen, device), device):
        scores = {group: domain.evaluate(model, classes) for group, classes in groups.items()}
    if args.json:
        print(json.dumps({"metric": domain.metric, "scores": scores}, indent=1))
        return
    print(domain.metric_label)
    for group, found in scores.items():
        print(f"{group:<26}{found['total']:6.1f}")
        for name, value in found.items():
            if args.per_class and name != "total":
                print(f"  {name:<24}{value:6.1f}")


def _load(args: argparse.Namespace):
    """(model, domain, groups, record) of a run, reading its own test images unless others are named."""
    from ks_classification import data
    from ks_classification.domain import ClassificationDomain, ImageConfig
    from ks_classification.session import config_of, load_run

    model, spec, record = load_run(args.run, args.checkpoint)
    flags = record["flags"]
    text = args.data or ",".join(filter(None, (flags["data"], flags.get("learn_data"))))
    images = data.load(text, flags["cache_dir"])
    groups = {k: tuple(v) for k, v in record["identity"]["plan"]["groups"].items()}
    config = config_of(ImageConfig, flags)
    config.eval_margin = config.eval_margin or args.eval_margin
    config.skip_corrupt = config.skip_corrupt or args.skip_corrupt
    config.label_smoothing = 0.0
    domain = ClassificationDomain(spec, images, groups, config, base=model, training=False)
    return model, domain, groups, record


if __name__ == "__main__":
    sys.exit(cli.main(run))
