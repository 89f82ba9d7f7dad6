"""Learn, forget and retain object classes: one run, from a pretrained detector to a report."""

import sys
from pathlib import Path

from common import adapters, cli, distributed

EXAMPLE = """Learn class bird2, forget cat and dog, retain the rest, from an official checkpoint:
  torchrun --nproc_per_node=2 object-detection/swap.py -c config/DINO/DINO_4scale.py \\
    --checkpoint checkpoint0011_4scale.pth --data coco --learn-data birds --learn bird2 --forget cat,dog
Stopped or killed? The same command goes on where it was."""
DEFAULTS = {  # of the published detection runs, where the loop's own are meant for images
    "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1, "epochs": 20, "schedule": "constant", "warmup": 0.0,
    "learn_weight": 0.9, "sparsity_weight": 0.01,
}  # fmt: skip


def run(argv: list[str]) -> None:
    """One swap from flags."""
    from ks_detection.checkpoints.export import export_official
    from ks_detection.cl_detr import ForgettingConfig
    from ks_detection.domain import PictureConfig
    from ks_detection.published import tidy
    from ks_detection.session import MODEL_FILE, SourceConfig, open_swap

    configs = (SourceConfig, PictureConfig, ForgettingConfig)
    argv = tidy(argv)
    reference = Path(__file__).parent / "configs" / "reference.yaml"
    parser = cli.swap_parser("swap.py", f"{__doc__}\n\n{EXAMPLE}", configs, argv, reference, **DEFAULTS)
    swap = cli.swap_flags(parser, argv, configs)
    domain, plan = open_swap(*swap.domain, swap.plan, swap.train.seed)
    trainer = cli.carry_out(domain, plan, swap)
    if distributed.is_main() and (trainer.run.path("model") / adapters.SWAP).exists():
        export_official(trainer.model, trainer.run.path("model") / MODEL_FILE, domain.classes)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
