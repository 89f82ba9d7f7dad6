"""Time one training step of ViT-B/16 against a plain loop, in one process, and print the ratio.

The step: LoRA rank 8 on both FFN layers of all 12 blocks, 8 target and 8 keep images of 224 pixels, forget
phase. Ours is the step of the loop (one joint forward, automatic precision). The plain loop is what one
writes from the paper: loralib's layer, two forwards, float32. The two take turns, so that a drifting machine
slows both; quote the ratio, not the seconds.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import cli, precision
from common.config import Parser, help_formatter


def main(argv: list[str]) -> None:
    """The benchmark from flags."""
    import torch

    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--model", default="vit_base_patch16_224", help="timm model name")
    parser.add_argument("--batch-size", type=int, default=8, help="target images, and as many keep images")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each, after one that is not")
    parser.add_argument("--precision", default="auto", choices=["auto", *precision.PRECISIONS])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the number to torch")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures here")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    steps = {"ours": our_step(args), "plain": plain_step(args)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, int] = {}
    for turn, name in itertools.product(range(args.repeats + 1), steps):
        reset_peak()
        began = time.perf_counter()
        steps[name]()
        if turn:
            seconds[name].append(time.perf_counter() - began)
            memory[name] = max(memory.get(name, 0), peak())
    report(args, seconds, memory)


def report(args: argparse.Namespace, seconds: dict[str, list[float]], memory: dict[str, int]) -> None:
    """Prints the table and the ratio, pair by pair."""
    import torch

    chosen = precision.choose(args.precision, torch.device("cpu"))
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    print(
        f"{args.model}, {args.batch_size} + {args.batch_size} images, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, label in (("ours", f"this loop ({chosen})"), ("plain", "plain loop (fp32)")):
        print(
            f"  {label:<20} {statistics.median(seconds[name]):6.2f} s per step   peak memory {memory[name] / 2**30:.2f} GiB"
        )
    median = statistics.median(ratios)
    print(f"  plain / ours         {median:6.2f}x  (min {min(ratios):.2f}, max {max(ratios):.2f}, {len(ratios)} pairs)")
    if args.json:
        from common.record import write_json

        figures = {"ratio_median": median, "ratio_min": min(ratios), "ratio_max": max(ratios), "precision": chosen,
                   "seconds": seconds, "peak_bytes": memory, "torch": torch.__version__, "threads": torch.get_num_threads()}  # fmt: skip
        write_json(Path(args.json), figures)


def our_step(args: argparse.Namespace):
    """A call that does one step of the loop on fixed batches."""
    from ks_classification.data.images import ImageSet, Item
    from ks_classification.domain import ClassificationDomain, ImageConfig
    from ks_classification.models.build import spec_of

    from common.plan import make_plan
    from common.record import Run
    from common.settings import settings_from
    from common.streams import Stream
    from common.trainer import Trainer

    classes = ["a", "b"]
    noise = np.random.default_rng(0)
    items = [
        Item(f"{i}", classes[i % 2], noise.integers(0, 256, (224, 224, 3), dtype=np.uint8))
        for i in range(2 * args.batch_size)
    ]
    images = ImageSet(classes, items, items[:2])
    plan = make_plan("forget", [], ["a"], ["b"])
    domain = ClassificationDomain(spec_of(args.model, {}, classes), images, plan.groups, ImageConfig(augment=False))
    flags = {name: getattr(args, name) for name in ("batch_size", "precision", "threads")}
    trainer = Trainer(domain, plan, settings_from((), {**flags, "device": "cpu"}), Run(tempfile.mkdtemp()))
    phase = plan.phases[0]
    trainer._begin(phase, 0)
    stream = Stream(0, args.batch_size)
    pair = tuple(next(iter(domain.loader(c, train=True, stream=stream))) for c in (phase.target, phase.keep))
    return lambda: trainer._step(phase, 0, 10, 10, itertools.repeat(pair), 1e-3)


def plain_step(args: argparse.Namespace):
    """A call that does the same step as one would write it down: two forwards in float32."""
    import timm
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Plain(nn.Module):
        """loralib's linear layer in training mode."""

        def __init__(self, base: nn.Linear, rank: int) -> None:
            super().__init__()
            self.base, self.scale = base, 1 / rank
            self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) * 0.01)
            self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

        def forward(self, x):
            return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scale

    model = timm.create_model(args.model, num_classes=2).requires_grad_(False).train()
    for block in model.blocks:
        block.mlp.fc1, block.mlp.fc2 = Plain(block.mlp.fc1, 8), Plain(block.mlp.fc2, 8)
    trained = [p for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05)
    target, keep = (torch.randn(args.batch_size, 3, 224, 224) for _ in range(2))
    labels = torch.zeros(args.batch_size, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        kept = F.cross_entropy(model(keep), labels + 1)
        forget = F.relu(105 - F.cross_entropy(model(target), labels))
        groups = [
            [p for n, p in model.named_parameters() if "lora_" in n and f"blocks.{i}." in n]
            for i in range(len(model.blocks))
        ]
        penalty = sum(torch.sqrt(sum(p.pow(2).sum() for p in group)) for group in groups)
        loss = kept + 0.2 * forget + 0.005 * penalty
        loss.backward()
        optimizer.step()

    return step


def reset_peak() -> None:
    """Starts the peak of this process's memory anew (Linux)."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.open("w").write("5")


def peak() -> int:
    """Largest resident size of this process since `reset_peak`, in bytes (0 where it cannot be told)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(cli.main(main))
