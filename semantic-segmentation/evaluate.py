"""Score a finished run, or a checkpoint, on its groups of classes: mIoU, fwIoU, mACC, pACC and every class's IoU."""

import argparse
import json
import math
import sys

from common import cli, devices, distributed, precision
from common.config import Parser, add_flags, from_args


def run(argv: list[str]) -> None:
    """Scores from flags."""
    import torch
    from ks_segmentation import launch
    from ks_segmentation.domain import MaskConfig
    from ks_segmentation.session import SourceConfig

    parser = Parser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", default="", help="folder of a finished run of swap.py or pretrain.py")
    add_flags(parser, SourceConfig)
    add_flags(parser, MaskConfig)
    parser.add_argument("--classes", default="", help="score these classes as one group: a,b,c or @file; default all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", choices=["auto", *precision.PRECISIONS])
    parser.add_argument(
        "--per-class", action=argparse.BooleanOptionalAction, default=True, help="also one line per class"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY value", help="overrides of the config, last")
    args = parser.parse_args(argv)
    source, masks = from_args(SourceConfig, args), from_args(MaskConfig, args)
    if launch.started_ranks(__file__, argv, source.num_gpus):
        return
    device = devices.choose_device(args.device, distributed.local_rank())
    distributed.init(device)
    model, domain, groups = _load(args.run, source, masks, args.classes, args.opts)
    model = model.to(device).eval()
    with torch.inference_mode(), precision.autocast(precision.choose(args.precision, device), device):
        scores = domain.scores(model, groups)
    if distributed.is_main():
        print(_json(scores, groups) if args.json else _table(scores, groups, args.per_class))
    distributed.close()


def _load(folder: str, source, masks, classes: str, words: list[str]):
    """(model, domain, groups): a run's own groups, or all classes that model and data share."""
    from ks_segmentation.domain import SegmentationDomain
    from ks_segmentation.session import SourceConfig, base_model, config_of, load_data, load_run

    from common.splits import resolve

    groups = {}
    if folder:
        model, known, record = load_run(folder, words)
        recorded = config_of(SourceConfig, record["flags"])
        if not source.data and not source.learnset:
            source = recorded
        groups = {k: tuple(v) for k, v in record["identity"]["plan"]["groups"].items()}
    else:
        model, known = base_model(source, words, grow=False)
    sets = load_data(source, [c for c in known if not c.startswith("spare_")][:150] if source.learnset else known)
    offered = [c for one in sets for c in one.classes]
    if classes or not groups:
        shared = [c for c in known if c in offered]
        groups = {"chosen" if classes else "all": tuple(resolve(classes, shared, "--classes") if classes else shared)}
    return model, SegmentationDomain(model, known, sets, groups, masks), groups


def _table(scores: dict, groups: dict, per_class: bool) -> str:
    lines = [f"{'group':<16}{'mIoU':>8}{'fwIoU':>8}{'mACC':>8}{'pACC':>8}"]
    for group, s in scores.items():
        lines.append(f"{group:<16}{s.miou:8.2f}{s.fwiou:8.2f}{s.macc:8.2f}{s.pacc:8.2f}")
        if per_class:
            lines += [f"  {name:<24} IoU {s.iou[name]:6.2f}  ACC {s.acc[name]:6.2f}" for name in groups[group]]
    return "\n".join(lines)


def _json(scores: dict, groups: dict) -> str:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return json.dumps(
        {
            group: {name: number(getattr(s, name)) for name in ("miou", "fwiou", "macc", "pacc")}
            | {f"IoU-{c}": number(s.iou[c]) for c in groups[group]}
            | {f"ACC-{c}": number(s.acc[c]) for c in groups[group]}
            for group, s in scores.items()
        },
        indent=1,
    )


if __name__ == "__main__":
    sys.exit(cli.main(run))
