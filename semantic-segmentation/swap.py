"""Learn, forget and retain the classes of a Mask2Former: one run, from a pretrained model to a report."""

import sys

from common import adapters, cli, distributed

EXAMPLE = """A detectron2 checkpoint, two data folders, five classes out and two in:
  python semantic-segmentation/swap.py --config-file configs/ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml \\
    --data ade20k:ADEChallengeData2016 --learn-data voc:VOC2012 --learn sheep,cow --forget wall,sky --order fltf MODEL.WEIGHTS model.pkl
Stopped or killed? The same command goes on where it was."""


def run(argv: list[str]) -> None:
    """One swap from flags."""
    from ks_segmentation import launch
    from ks_segmentation.session import open_swap, save_folder

    parser, configs = launch.swap_parser("swap.py", f"{__doc__}\n\n{EXAMPLE}", argv)
    swap = cli.swap_flags(parser, argv, configs)
    source, masks = swap.domain
    if launch.started_ranks(__file__, argv, source.num_gpus):
        return
    domain, plan = open_swap(source, masks, swap.plan, swap.flags["opts"], swap.train.seed)
    launch.tell_unused(parser, argv)
    trainer = cli.carry_out(domain, plan, swap)
    whole = trainer.run.path("model")
    if distributed.is_main() and (whole / adapters.SWAP).exists():
        save_folder(whole, trainer.model, domain.classes.names)
    distributed.close()


if __name__ == "__main__":
    sys.exit(cli.main(run))
