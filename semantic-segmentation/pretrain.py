"""Train a Mask2Former on named classes: a plan of one learn phase over all parameters."""

import sys
from dataclasses import dataclass, field

from common import cli, distributed


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})
    backbone_weights: str = field(
        default="", metadata={"help": "pretrained backbone (.pth, .pkl); default MODEL.WEIGHTS"}
    )


def run(argv: list[str]) -> None:
    """One pretraining from flags."""
    import torch
    from ks_segmentation import launch
    from ks_segmentation.architecture import build_mask2former
    from ks_segmentation.checkpoint import CLASSES_KEY, load_weights
    from ks_segmentation.domain import SegmentationDomain
    from ks_segmentation.session import load_data, save_folder, settings

    from common.config import add_flags, from_args
    from common.plan import Plan
    from common.splits import resolve

    parser, configs = launch.swap_parser(
        "pretrain.py", __doc__, argv, method="finetune", epochs=20, lr=1e-4, learn_weight=1.0, sparsity_weight=0.0
    )
    add_flags(parser, BaseConfig)
    swap = cli.swap_flags(parser, argv, configs)
    source, masks = swap.domain
    base = from_args(BaseConfig, parser.parse_args(argv))
    if launch.started_ranks(__file__, argv, source.num_gpus):
        return
    sets = load_data(source, ())
    offered = list(dict.fromkeys(c for one in sets for c in one.classes))
    classes = resolve(base.classes, offered, "--classes") if base.classes else offered
    torch.manual_seed(swap.train.seed)
    config = settings(source, [*swap.flags["opts"], CLASSES_KEY, len(classes)])
    model = build_mask2former(config)
    if base.backbone_weights or config.MODEL.WEIGHTS:
        load_weights(model, base.backbone_weights or config.MODEL.WEIGHTS, partial=True)
    groups = {"base": tuple(classes)}
    domain = SegmentationDomain(model, classes, sets, groups, masks, swap.train.seed)
    launch.tell_unused(parser, argv)
    trainer = cli.carry_out(domain, Plan("pretrain", groups, (("learn", ("base",)),)), swap)
    if distributed.is_main():
        save_folder(trainer.run.path("model"), trainer.model, classes)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
