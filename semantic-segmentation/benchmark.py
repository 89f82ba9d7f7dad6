"""Times one training step of Mask2Former by part, against transformers' own model, loss and attention in this process.

swap.py tells the C allocator to keep freed memory, users of transformers do not; `--allocator own`, the default, times
each as it is used, the other two give both the same allocator.
"""

import argparse
import gc
import json
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
from common.layers import keep_freed_memory
from common.record import write_json

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
    """Seconds of each part of one step of transformers' model, whose forward computes its loss."""
    times, clock = {}, Clock()
    loss = model(pixel_values=images, mask_labels=masks, class_labels=classes).loss
    times["forward and loss"] = clock.lap()
    loss.backward()
    times["backward"] = clock.lap()
    model.zero_grad(set_to_none=True)
    return times


class Clock:
    """Seconds between laps, on the wall or, for busy machines, of all threads."""

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.last = self.now()

    def lap(self) -> float:
        before, self.last = self.last, self.now()
        return self.last - before


def median(steps: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part and, as "step", of the sum."""
    result = {name: statistics.median(s[name] for s in steps) for name in steps[0]}
    return result | {"step": statistics.median(sum(s.values()) for s in steps)}


def measure(which: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds by part of one of the two models, after some steps until memory has grown."""
    if args.allocator == "kept" or (args.allocator == "own" and which == "ours"):
        keep_freed_memory()
    count = args.warm_up + args.steps
    torch.manual_seed(0)
    images, labels = scene(args.size)
    config = load_config(args.config_file)
    if which == "ours":
        model = build_mask2former(config).train()
        criterion = Criterion(config)
        steps = [our_step(model, criterion, images, labels) for _ in range(count)]
    else:
        from transformers import Mask2FormerForUniversalSegmentation

        model = Mask2FormerForUniversalSegmentation(build_mask2former(config).network.config).train()
        (target,) = segments(labels, 255, 150)
        steps = [their_step(model, images, [target.masks.float()], [target.classes]) for _ in range(count)]
    del model
    gc.collect()
    return median(steps[args.warm_up :])


def memory(which: str, args: argparse.Namespace) -> float:
    """GB of memory that a fresh process needs for the steps of one model."""
    command = [sys.executable, __file__, "--only", which, "--size", str(args.size), "--steps", "1", "--warm-up", "1"]
    command += ["--config-file", str(args.config_file), "--threads", str(args.threads), "--allocator", args.allocator]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def peak() -> float:
    """Largest resident size of this process so far, GB; not `ru_maxrss`, which a child takes over from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def run(argv: list[str]) -> int:
    """Prints the tables: transformers, then ours, in this process, then each one's memory in its own (Linux)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config-file", default=f"{CONFIG}", help="detectron2 YAML file")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=3, help="steps timed")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before")
    allocators = ["own", "default", "kept"]
    parser.add_argument("--allocator", choices=allocators, default="own", help="what becomes of freed memory")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of all threads")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure memory")
    parser.add_argument("--only", choices=["ours", "transformers"], help="run one model and print its memory in GB")
    parser.add_argument(
        "--json", default="", metavar="FILE", help="also write the figures here, beside other allocators'"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    Clock.now = staticmethod(time.process_time if args.clock == "cpu" else time.perf_counter)
    if args.only:
        measure(args.only, args)
        print(peak())
        return 0
    print(f"{Path(args.config_file).stem}, {args.size}x{args.size}, batch 1, {SEGMENTS} segments, fp32, "
          f"{args.threads} threads, median of {args.steps} steps, {args.clock} clock, allocator: {args.allocator}")  # fmt: skip
    results = {which: measure(which, args) for which in ("transformers", "ours")}
    for which, times in results.items():
        print(which, *(f"  {name:<20}{1000 * seconds:8.0f} ms" for name, seconds in times.items()), sep="\n")
    ratio = results["transformers"]["step"] / results["ours"]["step"]
    print(f"ours is {ratio:.2f} times as fast")
    flags = {name: value for name, value in vars(args).items() if name not in ("json", "only")}
    flags["config_file"] = Path(args.config_file).name
    figures = {"seconds": results, "ratio": ratio, "flags": flags, "torch": torch.__version__}
    if args.memory:
        figures["GB"] = {which: memory(which, args) for which in results}
        print("memory of a process: " + ", ".join(f"{which} {size:.2f} GB" for which, size in figures["GB"].items()))
    if args.json:
        file = Path(args.json)
        others = json.loads(file.read_text()) if file.exists() else {}
        write_json(file, others | {args.allocator: figures})
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
