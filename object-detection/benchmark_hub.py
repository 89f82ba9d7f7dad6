"""Times a detector of transformers with the compiled operator inside it, beside the library's own, with random weights."""

import argparse
import copy
import sys

import torch
from ks_detection.models.hub.config import HubConfig
from ks_detection.models.hub.families import FAMILIES
from ks_detection.models.hub.model import HubDetector
from torch import nn

from common import hub, timing
from common.cli import main
from common.layers import keep_freed_memory

BOXES = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.25, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.5]])


def step_of(network: nn.Module, side: int) -> timing.Step:
    """An inference and a training step (all weights train, no optimizer) on one image with three objects."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = [{"class_labels": torch.tensor([1, 17, 17]), "boxes": BOXES}]

    def step(watch: timing.Stopwatch) -> None:
        with torch.inference_mode():
            network.eval()(pixel_values=image)
        watch.lap("inference")
        loss = network.train()(pixel_values=image, labels=labels).loss
        watch.lap("forward and loss")
        loss.backward()
        network.zero_grad()
        watch.lap("backward")

    return step


def run(argv: list[str]) -> None:
    """Prints a table of both and how many times faster ours is."""
    parser = timing.make_parser(__doc__, steps=2, warm_up=1)
    parser.add_argument(
        "--kind", choices=list(FAMILIES), default="rt_detr_v2", help="with the sizes of its default config"
    )
    parser.add_argument("--side", type=int, default=640, help="pixels")
    args: argparse.Namespace = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # for both
    torch.manual_seed(0)
    config = hub.make_config({"model_type": args.kind}, "default config")
    config.num_labels = 80
    theirs = hub.build(FAMILIES[args.kind].kind, config)
    ours = HubDetector(HubConfig(config.num_labels, hub.plain_config(config)), copy.deepcopy(theirs))
    ours.network.loss_function = ours.loss  # as it was
    steps = {"transformers": step_of(theirs, args.side), "ours": step_of(ours.network, args.side)}
    found = {name: timed.medians() for name, timed in timing.measure(steps, args).items()}
    print(f"{args.kind}, {args.side}x{args.side}, batch 1, {args.threads} threads; seconds")
    for part, seconds in found["transformers"].items():
        own = found["ours"][part]
        print(f"  {part:<18}transformers {seconds:6.2f}  ours {own:6.2f}  {seconds / own:5.2f} times as fast")
    timing.save(args, {f"{args.kind} {args.side} {name}": {"seconds": seconds} for name, seconds in found.items()})


if __name__ == "__main__":
    sys.exit(main(run))
