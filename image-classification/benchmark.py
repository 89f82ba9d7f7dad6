"""Time one training step of ViT-B/16 against a plain loop, and with its first blocks kept (--fast), in one process.

The step: LoRA rank 8 on both FFN layers of all 12 blocks, 8 target and 8 keep images of 224 pixels, forget
phase. Ours is the step of the loop (one joint forward, automatic precision). The plain loop is what one
writes from the paper: loralib's layer, two forwards, float32. --fast adapts the last blocks only and reads what lies
below from the cache; filling it, "prefix", is done once. They take turns, so that a drifting machine slows all; quote
the ratios, not the seconds.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import timm
import torch
import torch.nn.functional as F
from ks_classification.data.images import ImageSet, Item
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models import stages
from ks_classification.models.build import spec_of
from torch import nn

from common import cli, precision, timing
from common.frozen import FAST_BLOCKS, FrozenConfig
from common.methods._base import Position
from common.plan import Plan
from common.record import Run
from common.settings import settings_from
from common.streams import Stream
from common.trainer import Trainer


def main(argv: list[str]) -> None:
    """The benchmark from flags."""
    parser = timing.make_parser(__doc__, steps=5, warm_up=1)
    parser.add_argument("--model", default="vit_base_patch16_224", help="timm model name")
    parser.add_argument("--batch-size", type=int, default=8, help="target images, and as many keep images")
    parser.add_argument("--lora-blocks", default=FAST_BLOCKS, help="blocks that --fast adapts")
    parser.add_argument("--precision", default="auto", choices=["auto", *precision.PRECISIONS])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    size = f"{args.batch_size} + {args.batch_size} images, {args.threads} threads"
    print(f"{args.model}, {size}, torch {torch.__version__}")
    if args.growth:
        timing.save(args, timing.growth(axes(args), args))
        return
    own = precision.choose(args.precision, torch.device("cpu"))
    fast = f"--fast, {args.lora_blocks}"
    formats = {"plain loop": "fp32", "this loop": own, "prefix": own, fast: own}
    makers = {"plain loop": partial(plain_step, args), "this loop": partial(our_step, args, ""),
              "prefix": partial(prefix_step, args), fast: partial(our_step, args, args.lora_blocks)}  # fmt: skip
    timing.save(args, timing.compare(makers, args, formats, in_turn=True))


def made(
    args: argparse.Namespace, blocks: str = "", cache: str = "none", *, classes: int = 2, images: int = 0,
    phases: int = 1, rank: int = 8, size: int = 224, batch: int = 0,
) -> tuple[Trainer, timing.Step]:  # fmt: skip
    """The loop on fixed batches in its last phase, and its step; with adapters in `blocks`, features of the others kept."""
    batch = batch or args.batch_size
    names = [f"{i}" for i in range(max(classes, phases + 1))]
    noise = np.random.default_rng(0).integers(0, 256, (2 * batch, size, size, 3), dtype=np.uint8)
    count = max(images, 2 * batch, len(names))
    items = [Item(f"{i}", names[i % len(names)], noise[i % len(noise)]) for i in range(count)]
    groups = {f"forget {i}": (names[i],) for i in range(phases)} | {"retain": tuple(names[phases:])}
    plan = Plan("benchmark", groups, tuple(("forget", (f"forget {i}",)) for i in range(phases)))
    spec = spec_of(args.model, {"img_size": size}, names)
    frozen = FrozenConfig(fast=bool(blocks), feature_cache=cache)
    domain = ClassificationDomain(
        spec, ImageSet(names, items, items[: len(names)]), plan.groups, ImageConfig(augment=False), frozen=frozen
    )
    flags = {"batch_size": batch, "precision": args.precision, "threads": args.threads, "lora_rank": rank}
    settings = settings_from((), {**flags, "device": "cpu", "lora_blocks": blocks})
    trainer = Trainer(domain, plan, settings, Run(tempfile.mkdtemp()))
    phase, stream = plan.phases[-1], Stream(0, batch)
    trainer._begin(phase, 0)
    target, keep = (next(iter(domain.loader(c, train=True, stream=stream))) for c in (phase.target, phase.keep))
    batches = itertools.repeat((target, keep))

    def step(watch: timing.Stopwatch) -> None:
        trainer._step(Position(phase, 0, 10, 10), batches, 1e-3)
        watch.lap("step")

    return trainer, step


def our_step(args: argparse.Namespace, blocks: str) -> timing.Step:
    """One step of the loop."""
    return made(args, blocks, tempfile.mkdtemp() if blocks else "none")[1]


def axes(args: argparse.Namespace) -> dict:
    """What may grow: one of them at a time, the others small."""
    small = {"size": 32, "batch": 2}

    def along(name: str, **fixed: int) -> Callable[[int], timing.Step]:
        return lambda value: made(args, **{**small, **fixed, name: value})[1]

    return {
        "images in the data": ((100, 1000, 10000), along("images")),
        "phases before": ((1, 5, 20), along("phases")),
        "classes": ((1000, 5000, 20000), along("classes")),
        "images in a step": ((2, 8, 32), along("batch", size=224)),
        "patches, side of a picture": ((64, 128, 224), along("size", batch=4)),
        "rank": ((4, 16, 64), along("rank", size=224)),
    }


def prefix_step(args: argparse.Namespace) -> timing.Step:
    """What is computed once for the images of a step: the blocks below the adapted ones."""
    trainer, _ = made(args, args.lora_blocks, tempfile.mkdtemp())
    model, images = trainer.model, torch.randn(2 * args.batch_size, 3, 224, 224)

    def step(watch: timing.Stopwatch) -> None:
        with torch.inference_mode(), precision.autocast(trainer.format, trainer.device):
            stages.chain(model).run(images, 0, model.frozen_stages)
        watch.lap("step")

    return step


class Plain(nn.Module):
    """loralib's linear layer in training mode."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.scale = base, 1 / rank
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) * 0.01)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scale


def plain_step(args: argparse.Namespace) -> timing.Step:
    """The same step as one would write it down: two forwards in float32."""
    model = timm.create_model(args.model, num_classes=2).requires_grad_(False).train()
    for block in model.blocks:
        block.mlp.fc1, block.mlp.fc2 = Plain(block.mlp.fc1, 8), Plain(block.mlp.fc2, 8)
    groups = [[p for p in block.parameters() if p.requires_grad] for block in model.blocks]
    optimizer = torch.optim.AdamW(itertools.chain(*groups), lr=1e-3, weight_decay=0.05)
    target, keep = torch.randn(2, args.batch_size, 3, 224, 224)
    labels = torch.zeros(args.batch_size, dtype=torch.long)

    def step(watch: timing.Stopwatch) -> None:
        optimizer.zero_grad()
        kept = F.cross_entropy(model(keep), labels + 1)
        forget = F.relu(105 - F.cross_entropy(model(target), labels))
        penalty = sum(torch.sqrt(sum(p.pow(2).sum() for p in group)) for group in groups)
        loss = kept + 0.2 * forget + 0.005 * penalty
        loss.backward()
        optimizer.step()
        watch.lap("step")

    return step


if __name__ == "__main__":
    sys.exit(cli.main(main))
