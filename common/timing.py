"""One harness for all benchmarks: time by part, memory, and the share of what this machine can do."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe, get_all_start_methods, get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.config import Parser, help_formatter
from common.errors import UserError
from common.layers import linear
from common.lazy import Module
from common.record import write_json

flop_counter = Module("torch.utils.flop_counter")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def make_parser(description: str, steps: int = 3, warm_up: int = 3) -> Parser:
    """A parser of the flags that every benchmark has."""
    parser = Parser(prog="benchmark.py", description=description, formatter_class=help_formatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=steps, help="steps timed")
    parser.add_argument("--warm-up", type=int, default=warm_up, help="steps before, until memory has grown")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of all threads, for busy machines")
    parser.add_argument("--growth", action="store_true", help="time and memory against sizes instead")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures here, beside other ones")
    return parser


class Stopwatch:
    """Seconds per part: `lap(name)` books the time since the last lap."""

    def __init__(self, clock: str = "wall") -> None:
        self.now = CLOCKS[clock]
        self.spent: dict[str, float] = {}
        self.last = self.now()

    def lap(self, name: str) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = self.now()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now


Step = Callable[[Stopwatch], object]  # one training step; laps each of its parts, the last one too


class Timing(NamedTuple):
    """Timed steps: seconds of each one's parts, and the largest resident size of the process in bytes."""

    laps: list[dict[str, float]]
    peak: int

    def steps(self) -> list[float]:
        """Seconds of each step."""
        return [sum(lap.values()) for lap in self.laps]

    def medians(self) -> dict[str, float]:
        """Seconds of each part and, as "step", of the whole."""
        parts = {name: statistics.median(lap[name] for lap in self.laps) for name in self.laps[0]}
        return parts | {"step": statistics.median(self.steps())}


def measure(steps: Mapping[str, Step], args: argparse.Namespace) -> dict[str, Timing]:
    """Runs the steps in turn, so that a drifting machine slows all of them."""
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    for turn, (name, step) in itertools.product(range(args.warm_up + args.steps), steps.items()):
        reset_peak()
        watch = Stopwatch(args.clock)
        step(watch)
        if turn >= args.warm_up:
            laps[name].append(watch.spent)
            peaks[name] = max(peaks[name], resident())
    return {name: Timing(laps[name], peaks[name]) for name in steps}


def compare(
    makers: Mapping[str, Callable[[], Step]], args: argparse.Namespace, precisions: Mapping[str, str], in_turn: bool
) -> dict[str, dict[str, Any]]:
    """Prints a table of each step and by how much the last is faster than the others; the figures by name.

    Args:
        makers: each makes a step.
        precisions: "fp32" or "bf16" of each step, for the limit of this machine.
        in_turn: one step of each after the other, all in memory; else all steps of one, then of the next.
    """
    found: dict[str, Timing] = {}
    figures: dict[str, dict[str, Any]] = {}
    for names in [list(makers)] if in_turn else [[name] for name in makers]:
        steps = {name: makers[name]() for name in names}
        found |= measure(steps, args)
        for name in names:
            flop, speed = flops(steps.pop(name)), machine_speed(precisions[name], args.clock)
            seconds, peak = found[name].medians(), found[name].peak / 2**30
            share = flop / speed / seconds["step"]
            figures[name] = {"seconds": seconds, "peak GiB": peak, "GFLOP": flop / 1e9, "share of the limit": share}
            print(
                f"{name} ({precisions[name]})", *(f"  {k:<20}{1000 * v:8.0f} ms" for k, v in seconds.items()), sep="\n"
            )
            print(f"  {'peak memory':<20}{peak:8.2f} GiB")
            print(f"  {flop / 1e9:.0f} GFLOP at {speed / 1e9:.0f} GFLOP/s: {share:.0%} of the limit")
        gc.collect()
    *others, last = found
    for name in others:
        ratios = [a / b for a, b in zip(found[name].steps(), found[last].steps(), strict=True)]
        figures[name]["ratio"], least, most = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{last} is {figures[name]['ratio']:.2f} times as fast as {name} ({least:.2f} to {most:.2f})")
    return figures


def growth(
    axes: Mapping[str, tuple[Sequence[int], Callable[[int], Step]]], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Prints time and memory of a step against one size after another, and the power of it that fits best; the figures.

    Args:
        axes: name of what grows -> its sizes, and what makes the step at one of them.
    """
    figures: dict[str, dict[str, Any]] = {}
    for name, (sizes, make) in axes.items():
        found = [apart(partial(_at, name, make, size, args)) for size in sizes]
        seconds, peaks = [one.medians()["step"] for one in found], [one.peak / 2**30 for one in found]
        powers = {what: _power(sizes, values) for what, values in (("time", seconds), ("memory", peaks))}
        figures[name] = {"sizes": list(sizes), "seconds": seconds, "peak GiB": peaks, "powers": powers}
        print(f"{name}: time ~ size^{powers['time']:.2f}, memory ~ size^{powers['memory']:.2f}")
        for row in zip(sizes, seconds, peaks, strict=True):
            print(f"  {row[0]:>7}{1000 * row[1]:9.0f} ms{row[2]:8.2f} GiB", flush=True)
    return figures


def _at(name: str, make: Callable[[int], Step], size: int, args: argparse.Namespace) -> Timing:
    return measure({name: make(size)}, args)[name]


def apart(call: Callable[[], Timing]) -> Timing:
    """`call()` in a fork of this process, which ends with the memory that it keeps; here where there are no forks.

    Raises:
        UserError: the fork ended without a result.
    """
    if "fork" not in get_all_start_methods():
        return call()
    receive, send = Pipe(duplex=False)
    process = get_context("fork").Process(target=lambda: send.send(call()))
    process.start()
    send.close()
    try:
        found: Timing = receive.recv()
    except EOFError:
        raise UserError("a step could not be timed; why stands above, or there was too little memory.") from None
    finally:
        process.join()
    return found


def _power(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size), least squares."""
    return statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, values))).slope


def flops(step: Step) -> int:
    """Floating-point operations of the matrix products and convolutions of one step, forward and backward."""
    # oneDNN's own, which torch's counter does not know
    rules = {"_linear_pointwise": _of_product, "_convolution_pointwise": _of_convolution}
    own = {getattr(torch.ops.mkldnn, name): rule for name, rule in rules.items() if hasattr(torch.ops.mkldnn, name)}
    with flop_counter.FlopCounterMode(display=False, custom_mapping=own) as counter:
        step(Stopwatch())
    return counter.get_total_flops()


def _of_product(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _of_convolution(x: torch.Size, *shapes: Any, out_shape: torch.Size, **_: Any) -> int:
    weight = shapes[0] if len(shapes[1]) == 1 else shapes[1]  # what is added to the answer may stand before it
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def machine_speed(precision: str, clock: str) -> float:
    """FLOP per second of a product of two 2048 x 2048 matrices in "fp32" or "bf16"."""
    x, weight = torch.randn(2, 2048, 2048).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    with torch.inference_mode():
        return 2 * 2048**3 / fastest(lambda: linear(x, weight), clock)


def fastest(call: Callable[[], object], clock: str, calls: int = 10) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(calls):
        start = CLOCKS[clock]()
        call()
        times.append(CLOCKS[clock]() - start)
    return min(times)


def reset_peak() -> None:
    """Starts the peak of this process's memory anew (Linux)."""
    if PEAK.exists():
        PEAK.write_text("5")


def resident() -> int:
    """Bytes: the largest resident size of this process, since `reset_peak` on Linux."""
    if STATUS.exists():  # `ru_maxrss` would include the peak of the process that started this one
        lines = STATUS.read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak where one is used, else the largest resident size of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()


def save(args: argparse.Namespace, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes figures by name, each with the flags, into the file of --json; other names in it stay."""
    if args.json:
        others = json.loads(Path(args.json).read_text()) if Path(args.json).exists() else {}
        flags = {name: value for name, value in vars(args).items() if name != "json"}
        made = {name: {"flags": flags, "torch": torch.__version__, **found} for name, found in figures.items()}
        write_json(Path(args.json), others | made)
