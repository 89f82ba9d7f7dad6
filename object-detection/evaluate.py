"""Score a finished run, or a checkpoint, on its groups of classes: COCO AP per group and per class."""

import argparse
import json
import sys
from pathlib import Path

from common import cli, devices, distributed, precision
from common.config import Parser
from common.errors import UserError


def run(argv: list[str]) -> None:
    """Scores from flags."""
    import torch
    from ks_detection.published import tidy

    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", help="folder of a finished run, such as results/detection/fltf-gs_lora-seed0, or a .pth")
    parser.add_argument("--data", default="", help="other pictures of the same classes; needed for a .pth")
    parser.add_argument(
        "--test-size", type=int, default=0, help="shorter side in pixels; default the run's own, or 800"
    )
    parser.add_argument("--eval-batch", type=int, default=8, help="pictures per batch, grouped by aspect ratio")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", *precision.PRECISIONS])
    parser.add_argument("--per-class", action=argparse.BooleanOptionalAction, default=True, help="a line per class")
    parser.add_argument("--curves", default="", metavar="FILE", help="write precision-recall curves to this .svg")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(tidy(argv))
    device = devices.choose_device(args.device, distributed.local_rank())
    distributed.init(device)
    model, domain, groups = _load(args)
    with torch.inference_mode(), precision.autocast(precision.choose(args.precision, device), device):
        scores = {group: domain.scores(model.to(device).eval(), classes) for group, classes in groups.items()}
    if distributed.is_main():
        _tell(scores, args)
    distributed.close()


def _tell(scores: dict, args: argparse.Namespace) -> None:
    if args.curves:
        from ks_detection.curves import draw_curves

        draw_curves({group: found.curves for group, found in scores.items()}, Path(args.curves))
    if args.json:
        print(json.dumps({"metric": "map", "scores": {group: found._asdict() for group, found in scores.items()}}))
        return
    print(f"{'':<26}{'AP':>7}{'AP50':>7}{'AP75':>7}")
    for group, found in scores.items():
        print(f"{group:<26}{found.ap:7.1f}{found.ap50:7.1f}{found.ap75:7.1f}")
        for name, value in found.per_class.items() if args.per_class else ():
            print(f"  {name:<24}{value:7.1f}{found.per_class50[name]:7.1f}")


def _load(args: argparse.Namespace):
    """(model, domain, groups) of a run on its own pictures unless others are named, or of a bare checkpoint."""
    from ks_detection.domain import DetectionDomain, PictureConfig
    from ks_detection.session import SourceConfig, base_model, config_of, is_run, load_run, open_data

    if is_run(args.run):
        model, record = load_run(args.run)
        source = config_of(SourceConfig, record["flags"])
        if args.data:
            source = SourceConfig(data=args.data)
        groups = {name: tuple(classes) for name, classes in record["identity"]["plan"]["groups"].items()}
        config = config_of(PictureConfig, record["flags"])
        data, _ = open_data(source)
    else:
        if not args.data:
            raise UserError(f"{args.run} is no run folder; to score a checkpoint file also give --data.")
        model = base_model(SourceConfig(checkpoint=args.run))
        data, _ = open_data(SourceConfig(data=args.data))
        groups = {"all": tuple(name for name in data.classes if name in model.class_table.names)}
        config = PictureConfig()
    config.cache_features, config.eval_batch = "", args.eval_batch
    config.test_size = args.test_size or config.test_size
    return model, DetectionDomain(model, data, groups, config), groups


if __name__ == "__main__":
    sys.exit(cli.main(run))
