"""Times one training step of Mask2Former by part, against transformers' own model, loss and attention in this process."""

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from ks_segmentation.architecture import build_mask2former
from ks_segmentation.config import load_config
from ks_segmentation.criterion import Criterion, segments
from ks_segmentation.pixel_decoder import pixel_features
from ks_segmentation.query_decoder import decode

from common.cli import main
from common.cpu import keep_freed_memory

CONFIG = Path(__file__).parent / "configs/ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
SEGMENTS = 10  # classes in the picture


def scene(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random picture [1, 3, S, S] and a label map [1, S, S] of ten rectangles."""
    generator = torch.Generator().manual_seed(0)
    column = torch.arange(size) * (SEGMENTS // 2) // size
    labels = column.expand(size, size) + (SEGMENTS // 2) * (torch.arange(size)[:, None] * 2 // size)
    return torch.randn(1, 3, size, size, generator=generator), labels[None]


def our_step(model, criterion, images, labels) -> dict[str, float]:
    """Seconds of each part of one step of ours."""
    times, clock = {}, Clock()
    level = model.network.model.pixel_level_module
    features = list(level.encoder(images).feature_maps)
    times["backbone"] = clock.lap()
    pixels = pixel_features(level.decoder, features)
    times["pixel decoder"] = clock.lap()
    decoded = decode(model.network.model.transformer_module, pixels)
    logits = model.network.class_predictor(decoded.states)
    times["query decoder"] = clock.lap()
    outputs = {"logits": logits, "mask_embeddings": decoded.mask_embeddings, "mask_features": pixels.mask_features}
    loss = criterion(outputs, labels).total
    times["matching and loss"] = clock.lap()
    loss.backward()
    times["backward"] = clock.lap()
    model.zero_grad(set_to_none=True)
    return times


def their_step(model, images, masks, classes) -> dict[str, float]:
    """Seconds of each part of one step of transformers' model. Its loss is computed inside its forward, so that the
    forward runs once more alone, to tell them apart; that extra pass counts nowhere."""
    times, clock = {}, Clock()
    model.model(pixel_values=images, output_hidden_states=True)
    alone = clock.lap()
    loss = model(pixel_values=images, mask_labels=masks, class_labels=classes).loss
    whole = clock.lap()
    times["forward"], times["matching and loss"] = alone, max(whole - alone, 0.0)
    loss.backward()
    times["backward"] = clock.lap()
    model.zero_grad(set_to_none=True)
    return times


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def median(steps: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part and, as "step", of the sum."""
    result = {name: statistics.median(s[name] for s in steps) for name in steps[0]}
    return result | {"step": statistics.median(sum(s.values()) for s in steps)}


def measure(which: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds by part of one of the two models, after one step to warm up."""
    torch.manual_seed(0)
    images, labels = scene(args.size)
    config = load_config(args.config_file)
    if which == "ours":
        model = build_mask2former(config).train()
        criterion = Criterion(config)
        steps = [our_step(model, criterion, images, labels) for _ in range(args.steps + 1)]
    else:
        from transformers import Mask2FormerForUniversalSegmentation

        model = Mask2FormerForUniversalSegmentation(build_mask2former(config).network.config).train()
        (target,) = segments(labels, 255, 150)
        steps = [their_step(model, images, [target.masks.float()], [target.classes]) for _ in range(args.steps + 1)]
    del model
    gc.collect()
    return median(steps[1:])


def peak(which: str, args: argparse.Namespace) -> float:
    """GB of memory that a fresh process needs for two steps of one model."""
    command = [sys.executable, __file__, "--only", which, "--size", str(args.size), "--steps", "1"]
    command += ["--config-file", str(args.config_file), "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def run(argv: list[str]) -> int:
    """Prints the tables: both models one after the other in this process, then each one's memory in its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config-file", default=str(CONFIG), help="detectron2 YAML file")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=3, help="steps timed, after one to warm up")
    parser.add_argument(
        "--keep-freed", action="store_true", help="let the allocator keep freed memory, as swap.py does"
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure memory")
    parser.add_argument("--only", choices=["ours", "transformers"], help="run one model and print its memory in GB")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_freed:
        keep_freed_memory()
    if args.only:
        measure(args.only, args)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return 0
    print(f"{Path(args.config_file).stem}, {args.size}x{args.size}, batch 1, {SEGMENTS} segments, fp32, "
          f"{args.threads} threads, median of {args.steps} steps")  # fmt: skip
    results = {which: measure(which, args) for which in ("ours", "transformers")}
    for which, times in results.items():
        print(which, *(f"  {name:<20}{1000 * seconds:8.0f} ms" for name, seconds in times.items()), sep="\n")
    print(f"ours is {results['transformers']['step'] / results['ours']['step']:.2f} times as fast")
    if args.memory:
        print("memory of a process: " + ", ".join(f"{which} {peak(which, args):.2f} GB" for which in results))
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
