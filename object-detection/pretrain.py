"""Train a detector on named classes, from scratch or from a checkpoint: a plan of one learn phase."""

import sys
from dataclasses import dataclass, field

from common import cli, distributed


@dataclass
class BaseConfig:
    """What the detector shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})
    backbone_weights: str = field(
        default="",
        metadata={"help": "weights of the backbone alone, such as torchvision's resnet50 or mobilenet_v2 .pth"},
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "train all but the backbone, whose maps --cache-features can then keep"}
    )
    half: bool = field(default=False, metadata={"help": "store the result in float16, half the size"})


def run(argv: list[str]) -> None:
    """One pretraining from flags."""
    import torch
    from ks_detection.checkpoints.backbone import load_backbone
    from ks_detection.checkpoints.export import export_official
    from ks_detection.dino.config import DinoConfig
    from ks_detection.domain import DetectionDomain, PictureConfig
    from ks_detection.published import tidy
    from ks_detection.session import MODEL_FILE, SourceConfig, base_model, fresh_model, open_data

    from common.plan import Plan
    from common.splits import resolve

    configs = (BaseConfig, SourceConfig, PictureConfig)
    argv = tidy(argv)
    defaults = {"method": "finetune", "epochs": 12, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1}
    parser = cli.swap_parser("pretrain.py", __doc__, configs, argv, **defaults)
    swap = cli.swap_flags(parser, argv, configs)
    base, source, pictures = swap.domain
    data, _ = open_data(source)
    classes = resolve(base.classes, data.classes, "--classes") if base.classes else data.classes
    torch.manual_seed(swap.train.seed)
    if source.checkpoint:
        model = base_model(source)
    else:
        ids = tuple(data.ids.get(name, row) for row, name in enumerate(classes))
        model = fresh_model(source, tuple(classes), ids, DinoConfig())
    if base.backbone_weights:
        load_backbone(model, base.backbone_weights)
    if base.freeze_backbone:
        model.backbone.requires_grad_(False)
    groups = {"base": tuple(classes)}
    domain = DetectionDomain(model, data, groups, pictures, swap.train.seed)
    trainer = cli.carry_out(domain, Plan("pretrain", groups, (("learn", ("base",)),)), swap)
    if distributed.is_main():
        export_official(trainer.model, trainer.run.path("model") / MODEL_FILE, domain.classes, half=base.half)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
