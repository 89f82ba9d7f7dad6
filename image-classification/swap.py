"""Learn, forget and retain image classes: one run, from a pretrained model to a report."""

import sys
from pathlib import Path

from common import adapters, cli, distributed

EXAMPLE = """Example: learn the digits 8 and 9, forget 0 and 1, retain the rest.
  python image-classification/swap.py --data digits --checkpoint results/base --learn 8,9 --forget 0,1

Stopped or killed? The same command goes on where it was."""


def run(argv: list[str]) -> None:
    """One swap from flags."""
    from ks_classification import models
    from ks_classification.chance import refuse_chance
    from ks_classification.domain import ClassificationDomain, ImageConfig
    from ks_classification.session import SourceConfig, open_swap

    configs = (SourceConfig, ImageConfig)
    reference = Path(__file__).parent / "configs" / "reference.yaml"
    parser = cli.swap_parser("swap.py", f"{__doc__}\n\n{EXAMPLE}", configs, argv, reference)
    swap = cli.swap_flags(parser, argv, configs)
    source, images = swap.domain
    adapted = swap.method.scope(swap.method_config) == "adapter"
    opening = open_swap(source, swap.plan, swap.lora if adapted else None)
    cli.check_folder(ClassificationDomain.name, opening.plan, swap)
    domain = opening.domain(images, source.head_rows, swap.train.seed)
    if not source.allow_chance:
        refuse_chance(domain, opening.plan, swap.train)
    trainer = cli.carry_out(domain, opening.plan, swap)
    whole = trainer.run.path("model")
    if distributed.is_main() and (whole / adapters.SWAP).exists():
        domain.spec.classes = list(domain.classes.names)
        models.save_folder(whole, domain.spec)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
