"""Train a base model from scratch on named classes: a plan of one learn phase over all parameters."""

import sys
from dataclasses import dataclass, field

from common import cli, distributed
from common.errors import UserError

EXAMPLE = """Example: a small vision transformer that knows the digits 0 to 7.
  python image-classification/pretrain.py --data digits --no-flip --classes 0,1,2,3,4,5,6,7 --img-size 16 \\
    --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4 --lr 2e-3 --output-dir results/base"""


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})


def run(argv: list[str]) -> None:
    """One pretraining from flags."""
    import torch
    from ks_classification import data, models
    from ks_classification.domain import ClassificationDomain, ImageConfig
    from ks_classification.session import SourceConfig, spec_from

    from common.plan import Plan
    from common.splits import resolve

    configs = (BaseConfig, SourceConfig, ImageConfig)
    parser = cli.swap_parser(
        "pretrain.py", f"{__doc__}\n\n{EXAMPLE}", configs, argv, method="finetune", epochs=20, batch_size=64, model="vit_tiny_patch16_224"
    )  # fmt: skip
    swap = cli.swap_flags(parser, argv, configs)
    base, source, image_config = swap.domain
    for name in ("allow_chance", "checkpoint", "class_names", "head_rows", "learn_data", "lora_merged", "narrow_head"):
        if getattr(source, name):
            raise UserError(f"`--{name.replace('_', '-')}` is for swap.py; pretrain.py makes a new model of --model.")
    spec = spec_from(source, [])
    images = data.load(source.data, source.cache_dir)
    classes = resolve(base.classes, images.classes, "--classes") if base.classes else images.classes
    spec.classes = list(classes)
    torch.manual_seed(swap.train.seed)
    start = models.build(spec, pretrained=source.pretrained)
    if source.stem_weights:
        from ks_classification.hybrid import load_stem

        load_stem(start, source.stem_weights)
    models.set_dropout(start, source.dropout)
    groups = {"base": tuple(classes)}
    domain = ClassificationDomain(spec, images, groups, image_config, base=start, seed=swap.train.seed)
    plan = Plan("pretrain", groups, (("learn", ("base",)),))
    trainer = cli.carry_out(domain, plan, swap)
    if distributed.is_main():
        models.save_folder(trainer.run.path("model"), spec)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
