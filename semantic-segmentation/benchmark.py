"""Times one training step of Mask2Former by part, against transformers' own model, loss and attention in this process.

swap.py tells the C allocator to keep freed memory, users of transformers do not; `--allocator own`, the default, times
each as it is used, the other two give both the same allocator. Adapters train on all feed-forward nets, the same in both
models; with `--trained all` everything does.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from ks_segmentation.config.load import load_config
from ks_segmentation.models.mask2former.model import build_mask2former
from ks_segmentation.models.mask2former.pixel_decoder import pixel_features
from ks_segmentation.models.mask2former.query_decoder import decode
from ks_segmentation.models.parts.criterion import Criterion
from ks_segmentation.models.parts.targets import segments
from transformers import Mask2FormerForUniversalSegmentation

from common import timing
from common.cli import main
from common.layers import keep_freed_memory
from common.lora import inject, positions

CONFIG = Path(__file__).parent / "configs/ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
SEGMENTS = 10  # classes in the picture


def scene(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random picture [1, 3, S, S] and a label map [1, S, S] of ten rectangles."""
    generator = torch.Generator().manual_seed(0)
    column = torch.arange(size) * (SEGMENTS // 2) // size
    labels = column.expand(size, size) + (SEGMENTS // 2) * (torch.arange(size)[:, None] * 2 // size)
    return torch.randn(1, 3, size, size, generator=generator), labels[None]


def adapt(network: torch.nn.Module, args: argparse.Namespace) -> None:
    """Adapters of rank 8 on the feed-forward nets of a frozen network, unless everything trains."""
    if args.trained == "lora":
        network.requires_grad_(False)
        inject(network, positions(network)["ffn"], rank=8, alpha=8.0)


def our_step(args: argparse.Namespace, size: int = 0, classes: int = 0) -> timing.Step:
    """A step of this project's model, timed by part; `size` and `classes` in the place of those of flags and config."""
    more = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes) if classes else ()
    config, (images, labels) = load_config(args.config_file, more), scene(size or args.size)
    model, criterion = build_mask2former(config).train(), Criterion(config)
    adapt(model.network, args)
    parts = model.network.model

    def step(watch: timing.Stopwatch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            features = list(parts.pixel_level_module.encoder(images).feature_maps)
            watch.lap("backbone")
            pixels = pixel_features(parts.pixel_level_module.decoder, features)
            watch.lap("pixel decoder")
            decoded = decode(parts.transformer_module, pixels)
            logits = model.network.class_predictor(decoded.states)
            watch.lap("query decoder")
            outputs = {"logits": logits, "mask_embeddings": decoded.mask_embeddings}
            loss = criterion(outputs | {"mask_features": pixels.mask_features}, labels).total
            watch.lap("matching and loss")
        loss.backward()
        watch.lap("backward")
        model.zero_grad(set_to_none=True)

    return step


def their_step(args: argparse.Namespace) -> timing.Step:
    """A step of transformers' model, whose forward computes its loss."""
    images, labels = scene(args.size)
    model = Mask2FormerForUniversalSegmentation(build_mask2former(load_config(args.config_file)).network.config).train()
    adapt(model, args)
    (target,) = segments(labels, 255, 150)
    masks, classes = target.masks.float(), target.classes

    def step(watch: timing.Stopwatch) -> None:
        loss = model(pixel_values=images, mask_labels=[masks], class_labels=[classes]).loss
        watch.lap("forward and loss")
        loss.backward()
        watch.lap("backward")
        model.zero_grad(set_to_none=True)

    return step


def axes(args: argparse.Namespace) -> dict:
    """What may grow: the side of a picture, or the classes."""
    return {
        "side of a picture": ((128, 256, 512), lambda side: our_step(args, size=side)),
        "classes": ((150, 1500, 15000), lambda classes: our_step(args, size=128, classes=classes)),
    }


STEPS = {"transformers": their_step, "ours": our_step}  # in this order: what is freed after the first stays kept


def step_of(which: str, args: argparse.Namespace) -> timing.Step:
    """The step of one of the two models, with the allocator it is to have."""
    if args.allocator == "kept" or (args.allocator == "own" and which == "ours"):
        keep_freed_memory()
    torch.manual_seed(0)
    return STEPS[which](args)


def run(argv: list[str]) -> None:
    """Prints the tables: transformers, then ours, in this process."""
    parser = timing.make_parser(__doc__)
    parser.add_argument("--config-file", default=f"{CONFIG}", help="detectron2 YAML file")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    allocators = ["own", "default", "kept"]
    parser.add_argument("--allocator", choices=allocators, default="own", help="what becomes of freed memory")
    parser.add_argument(
        "--model", choices=["both", *STEPS], default="both", help="one alone: memory kept by none before it"
    )
    parser.add_argument("--trained", choices=["lora", "all"], default="lora", help="what trains")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="number format of ours")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.growth:
        keep_freed_memory()
        figures = timing.growth(axes(args), args)
        args.config_file = Path(args.config_file).name  # on record without its folder
        timing.save(args, figures)
        return
    name, size = Path(args.config_file).stem, f"{args.size}x{args.size}, batch 1, {SEGMENTS} segments"
    print(f"{name}, {size}, {args.threads} threads, allocator: {args.allocator}")
    makers = {which: partial(step_of, which, args) for which in STEPS if args.model in ("both", which)}
    figures = timing.compare(makers, args, {"transformers": "fp32", "ours": args.precision}, in_turn=False)
    args.config_file = f"{name}.yaml"  # on record without its folder
    timing.save(args, {" ".join((args.trained, args.precision, args.allocator, args.model)): figures})


if __name__ == "__main__":
    sys.exit(main(run))
