"""Times one training step of DINO by part, with the compiled sampling op and with its plain reference path."""

import argparse
import resource
import statistics
import sys
import time

import torch
from ks_detection.dino import deformable
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.criterion import Criterion
from ks_detection.dino.model import Dino, ffn_linears
from ks_detection.dino.padding import pad_images

from common.cli import main
from common.cpu import keep_freed_memory
from common.lora import inject

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
    model: Dino, size: tuple[int, int], steps: int, precision: str, clock: str = "wall"
) -> list[dict[str, float]]:
    """Seconds by part of `steps` training steps (one image, three objects), after one to warm up."""
    criterion, watch = Criterion(model.config), Stopwatch(clock)
    hook_parts(model, watch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = pad_images([torch.randn(3, *size, generator=torch.Generator().manual_seed(0))])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.25, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.5]])
    targets = [{"labels": torch.tensor([1, 17, 17]), "boxes": boxes}]
    times = []
    for _ in range(steps + 1):
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
    return times[1:]


def use_path(name: str) -> None:
    """Makes every deformable attention layer call the compiled op or the plain PyTorch reference."""
    from ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

    deformable.ms_deform_attn = ms_deform_attn if name == "op" else ms_deform_attn_reference


def table(times: list[dict[str, float]]) -> list[str]:
    """One line per part and the total, medians in milliseconds."""
    lines = [f"  {part:<16}{1000 * statistics.median(t[part] for t in times):8.0f} ms" for part in PARTS]
    return [*lines, f"  {'step':<16}{1000 * statistics.median(sum(t.values()) for t in times):8.0f} ms"]


def run(argv: list[str]) -> int:
    """Prints the tables; each path runs in this process, the op first, so that its peak memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--height", type=int, default=480, help="pixels")
    parser.add_argument("--width", type=int, default=640, help="pixels")
    parser.add_argument("--backbone", default="resnet50", help="a published backbone name")
    parser.add_argument("--trained", choices=["lora", "ffn"], default="lora", help="what trains in the FFNs")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="number format")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=3, help="steps timed, after one to warm up")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of all threads, for busy machines"
    )
    parser.add_argument("--paths", default="op,reference", help="which sampling paths to time")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"DINO {args.backbone}, {args.height}x{args.width}, batch 1, {args.trained} trains, {args.precision}, "
          f"{args.threads} threads, median of {args.steps} steps")  # fmt: skip
    for path in args.paths.split(","):
        use_path(path)
        model = build(DinoConfig(backbone=args.backbone), args.trained)
        times = step_times(model, (args.height, args.width), args.steps, args.precision, args.clock)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{path} path", *table(times), f"  peak memory of the process so far {peak:.2f} GiB", sep="\n")
        del model
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
