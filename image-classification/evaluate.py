"""Score a finished run again, on its own groups of classes: the same numbers as in its report."""

import argparse
import json
import sys

from common import cli, distributed, precision
from common.config import Parser


def run(argv: list[str]) -> None:
    """Scores from flags."""
    import torch

    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", help="folder of a finished run, such as results/classification/fltf-gs_lora-seed0")
    parser.add_argument("--data", default="", help="other images of the same classes, instead of the run's own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", *precision.PRECISIONS])
    parser.add_argument(
        "--per-class", action=argparse.BooleanOptionalAction, default=True, help="also one line per class"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    device = precision.choose_device(args.device, distributed.local_rank())
    model, domain, groups = _load(args.run, args.data)
    with torch.inference_mode(), precision.autocast(precision.choose(args.precision, device), device):
        scores = {group: domain.evaluate(model.to(device), classes) for group, classes in groups.items()}
    if args.json:
        print(json.dumps({"metric": domain.metric, "scores": scores}, indent=1))
        return
    for group, found in scores.items():
        print(f"{group:<16}{found['total']:6.1f}   {domain.metric_label}")
        for name, value in found.items():
            if args.per_class and name != "total":
                print(f"  {name:<24}{value:6.1f}")


def _load(folder: str, data_text: str):
    """(model, domain, groups) of a run, reading its own images unless others are named."""
    from ks_classification import data
    from ks_classification.domain import ClassificationDomain, ImageConfig
    from ks_classification.session import config_of, load_run

    model, spec, record = load_run(folder)
    flags = record["flags"]
    text = data_text or ",".join(filter(None, (flags["data"], flags.get("learn_data"))))
    images = data.load(text, flags["cache_dir"])
    groups = {k: tuple(v) for k, v in record["identity"]["plan"]["groups"].items()}
    config = config_of(ImageConfig, flags)
    return model, ClassificationDomain(spec, images, groups, config, base=model), groups


if __name__ == "__main__":
    sys.exit(cli.main(run))
