"""Times one training step of DINO by part: as swap.py runs it, with the sampling op's reference path, and plainly.

The plain path is this model without what makes it fast: sampling by `grid_sample`, matrix products by `F.linear`,
adapters beside their layers, memory given back when freed. It stands in for the published code.
"""

import argparse
import sys
from functools import partial

import torch
from ks_detection.models.dino import attention
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.criterion import Criterion
from ks_detection.models.dino.model import Dino
from ks_detection.models.parts.detector import ffn_linears
from ks_detection.models.parts.padding import pad_images
from ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

from common import timing
from common.cli import main
from common.layers import fast, keep_freed_memory
from common.lora import inject

PATHS = ("plain", "reference", "op")  # in this order: what is freed after the first stays kept


def build(config: DinoConfig, trained: str) -> Dino:
    """A DINO in training mode of which only the FFN linears train: themselves, or adapters on them."""
    torch.manual_seed(0)
    model = Dino(config).train().requires_grad_(False)
    names = ffn_linears(model)
    if trained == "lora":
        inject(model, names, rank=8, alpha=1.0)
    else:
        for name in names:
            model.get_submodule(name).requires_grad_(True)
    return model


def training_step(model: Dino, size: tuple[int, int], precision: str) -> timing.Step:
    """A training step on one image with three objects, timed by part."""
    criterion, watch = Criterion(model.config), timing.Stopwatch()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = pad_images([torch.randn(3, *size, generator=torch.Generator().manual_seed(0))])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.25, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.5]])
    targets = [{"labels": torch.tensor([1, 17, 17]), "boxes": boxes}]
    parts = {name: getattr(model.transformer, name) for name in ("encoder", "selection", "decoder")}
    for name, module in {"backbone": model.backbone, **parts}.items():
        module.register_forward_hook(lambda *_, name=name: watch.lap(name))

    def step(own: timing.Stopwatch) -> None:
        nonlocal watch
        watch = own
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(batch, targets)
        loss = criterion.total(criterion(outputs, targets))
        watch.lap("heads and loss")
        loss.backward()
        watch.lap("backward")
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimizer")

    return step


def step_on(path: str, args: argparse.Namespace) -> timing.Step:
    """The step on one of `PATHS`, to which this process is switched."""
    attention.ms_deform_attn = ms_deform_attn if path == "op" else ms_deform_attn_reference
    if fast:
        fast.switch(path != "plain")
    if path != "plain":
        keep_freed_memory()
    model = build(DinoConfig(backbone=args.backbone), args.trained)
    return training_step(model, (args.height, args.width), args.precision)


def axes(args: argparse.Namespace) -> dict:
    """What may grow: the side of a picture, or the classes."""

    def step(side: int, classes: int) -> timing.Step:
        config = DinoConfig(backbone=args.backbone, num_classes=classes, dn_labelbook_size=classes)
        return training_step(build(config, args.trained), (side, side), args.precision)

    return {
        "side of a picture": ((128, 256, 512), lambda side: step(side, 91)),
        "classes": ((100, 1000, 20000), lambda classes: step(128, classes)),
    }


def run(argv: list[str]) -> None:
    """Prints a table per path and how many times faster the op path is than the others."""
    parser = timing.make_parser(__doc__)
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=640, help="pixels")
    parser.add_argument("--backbone", default="resnet50", help="a published backbone name")
    parser.add_argument("--trained", choices=["lora", "ffn"], default="lora", help="what trains in the FFNs")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="number format")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="which paths to time")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.growth:
        timing.save(args, timing.growth(axes(args), args))
        return
    print(f"DINO {args.backbone}, {args.height}x{args.width}, batch 1, {args.trained} trains, {args.threads} threads")
    makers = {path: partial(step_on, path, args) for path in sorted(args.paths, key=PATHS.index)}
    timing.save(args, timing.compare(makers, args, dict.fromkeys(PATHS, args.precision), in_turn=False))


if __name__ == "__main__":
    sys.exit(main(run))
