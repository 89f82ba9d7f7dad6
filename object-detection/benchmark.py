"""Times one training step of DINO by part: as swap.py runs it, with the sampling op's reference path, and plainly.

The plain path is this model without what makes it fast: sampling by `grid_sample`, matrix products by `F.linear`,
adapters beside their layers, memory given back when freed. It stands in for the published code.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from ks_detection.dino import deformable
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.criterion import Criterion
from ks_detection.dino.model import Dino, ffn_linears
from ks_detection.dino.padding import pad_images

from common.cli import main
from common.layers import fast, keep_freed_memory
from common.lora import inject
from common.record import write_json

PATHS = ("plain", "op", "reference")  # in this order: what is freed after the first stays kept
PARTS = ("backbone", "encoder", "selection", "decoder", "heads and loss", "backward", "optimizer")


class Stopwatch:
    """Seconds per part: `lap(name)` books the time since the last lap."""

    def __init__(self, clock: str = "wall") -> None:
        self.now = time.perf_counter if clock == "wall" else time.process_time
        self.start()

    def start(self) -> None:
        self.spent: dict[str, float] = {}
        self.last = self.now()

    def lap(self, name: str) -> None:
        now = self.now()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now


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


def hook_parts(model: Dino, watch: Stopwatch) -> None:
    """Books each part's forward time when it ends."""
    parts = {
        "backbone": model.backbone,
        "encoder": model.transformer.encoder,
        "selection": model.transformer.selection,
        "decoder": model.transformer.decoder,
    }
    for name, module in parts.items():
        module.register_forward_hook(lambda *_, name=name: watch.lap(name))


def step_times(
    model: Dino, size: tuple[int, int], steps: int, precision: str, clock: str = "wall", warm_up: int = 3
) -> list[dict[str, float]]:
    """Seconds by part of `steps` training steps (one image, three objects), after some until memory has grown."""
    criterion, watch = Criterion(model.config), Stopwatch(clock)
    hook_parts(model, watch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = pad_images([torch.randn(3, *size, generator=torch.Generator().manual_seed(0))])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.25, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.5]])
    targets = [{"labels": torch.tensor([1, 17, 17]), "boxes": boxes}]
    times = []
    for _ in range(warm_up + steps):
        watch.start()
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
        times.append(watch.spent)
    return times[warm_up:]


def use_path(name: str) -> None:
    """Switches to one of `PATHS`."""
    from ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

    deformable.ms_deform_attn = ms_deform_attn if name == "op" else ms_deform_attn_reference
    if fast:
        fast.switch(name != "plain")
    if name != "plain":
        keep_freed_memory()


def reset_peak() -> None:
    """Starts the peak of this process's memory anew (Linux)."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5")


def peak() -> float:
    """Largest resident size since `reset_peak`, GiB; NaN where it cannot be told."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), float("nan"))


def medians(times: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of each part and, as "step", of the sum."""
    parts = {part: statistics.median(t[part] for t in times) for part in PARTS}
    return parts | {"step": statistics.median(sum(t.values()) for t in times)}


def run(argv: list[str]) -> int:
    """Prints a table per path and how many times faster the op path is than the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=640, help="pixels")
    parser.add_argument("--backbone", default="resnet50", help="a published backbone name")
    parser.add_argument("--trained", choices=["lora", "ffn"], default="lora", help="what trains in the FFNs")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="number format")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=3, help="steps timed, after three to warm up")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of all threads, for busy machines"
    )
    parser.add_argument("--paths", default=",".join(PATHS), help="which paths to time")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures here, beside other paths'")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"DINO {args.backbone}, {args.height}x{args.width}, batch 1, {args.trained} trains, {args.precision}, "
          f"{args.threads} threads, {args.clock} clock, median of {args.steps} steps")  # fmt: skip
    results = {}
    for path in sorted(args.paths.split(","), key=PATHS.index):
        use_path(path)
        reset_peak()
        model = build(DinoConfig(backbone=args.backbone), args.trained)
        times = step_times(model, (args.height, args.width), args.steps, args.precision, args.clock)
        results[path] = {"seconds": medians(times), "peak GiB": peak()}
        del model
        gc.collect()
        print(f"{path} path", *(f"  {n:<16}{1000 * v:8.0f} ms" for n, v in medians(times).items()), sep="\n")
        print(f"  peak memory     {results[path]['peak GiB']:8.2f} GiB")
    for path in [path for path in results if path != "op" and "op" in results]:
        ratio = results[path]["seconds"]["step"] / results["op"]["seconds"]["step"]
        print(f"the op path is {ratio:.2f} times as fast as the {path} path")
    if args.json:
        file = Path(args.json)
        others = json.loads(file.read_text()) if file.exists() else {}
        flags = {name: value for name, value in vars(args).items() if name not in ("json", "paths")}
        made = {path: {"flags": flags, "torch": torch.__version__, **found} for path, found in results.items()}
        write_json(file, others | made)
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
