"""Times the operator against grid_sample, counts the bytes it must move, and weighs them against this machine's memory."""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from ms_deform_attn import ms_deform_attn, use_backend
from ms_deform_attn.reference import sum_of_samples

HEADS, CHANNELS, POINTS = 8, 32, 4
DINO = ((100, 167), (50, 84), (25, 42), (13, 21))
CASES = {  # name: (levels, queries or None for one per token, aimed at: forward, backward)
    "DINO encoder": (DINO, None, 28, 15),
    "DINO decoder": (DINO, 900, 6, None),
    "Mask2Former 640 px": (((80, 80), (40, 40), (20, 20)), None, 20, None),
}
LINE = 64  # bytes moved at least for any read


def inputs(sizes, queries, near, dtype=torch.float32, device="cpu"):
    """Operator inputs; samples within a few pixels of their query (`near`), as in a model, or anywhere."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in sizes)
    starts = [sum(h * w for h, w in sizes[:level]) for level in range(len(sizes))]
    shape = 1, queries or tokens, HEADS, len(sizes), POINTS
    value = torch.randn(1, tokens, HEADS, CHANNELS, generator=generator)
    weights = torch.randn(shape, generator=generator).flatten(3).softmax(-1).view(shape)
    if near:
        centres = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in sizes]
        centres = torch.cat(centres).flip(1)
        if queries:
            centres = centres[torch.randperm(tokens, generator=generator)[:queries]]
        pixels = 1 / torch.tensor(sizes).flip(1).view(len(sizes), 1, 2)
        locations = centres.view(1, -1, 1, 1, 1, 2) + 2 * pixels * torch.randn(*shape, 2, generator=generator)
    else:
        locations = torch.rand(*shape, 2, generator=generator)
    tensors = [x.to(device, dtype) for x in (value, locations, weights)]
    return tensors[0], torch.tensor(sizes), torch.tensor(starts), *tensors[1:]


def timed(function, seconds=1.0, least=5):
    """Median and fastest of at least `least` calls, in ms."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    function()
    times = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        synchronize()
        start = time.perf_counter()
        kept = function()
        synchronize()
        times.append(1e3 * (time.perf_counter() - start))
        del kept
    return sorted(times)[len(times) // 2], min(times)


def kept_bytes(function, leaves):
    """Bytes of distinct storage that autograd keeps for backward."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x) is None or x, lambda x: x
    ):
        function(*leaves)
    return sum(x.untyped_storage().nbytes() for x in kept.values() if x.is_floating_point())


def measure(data, seconds):
    """{way: {forward, backward (ms, median), fastest of both, kept (bytes)}} for the operator and grid_sample."""
    value, sizes, starts, locations, weights = data
    size_list, start_list = [tuple(x) for x in sizes.tolist()], starts.tolist()
    ways = {
        "op": lambda v, l, w: ms_deform_attn(v, sizes, starts, l, w),
        "grid_sample": lambda v, l, w: sum_of_samples(v, size_list, start_list, l, w),
    }
    results = {}
    for name, run in ways.items():
        with torch.no_grad():
            forward = timed(lambda run=run: run(value, locations, weights), seconds)
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        out = run(*leaves)
        grad = torch.ones_like(out)
        backward = timed(
            lambda out=out, leaves=leaves, grad=grad: torch.autograd.grad(out, leaves, grad, retain_graph=True), seconds
        )
        del out
        results[name] = {
            "forward_ms": round(forward[0], 3),
            "backward_ms": round(backward[0], 3),
            "forward_fastest_ms": round(forward[1], 3),
            "backward_fastest_ms": round(backward[1], 3),
            "kept_bytes": kept_bytes(run, leaves),
        }
    return results


def bytes_moved(data):
    """(compulsory, corners): bytes that any forward must move, and bytes of the rows its samples read."""
    value, sizes, _, locations, weights = data
    out = locations.shape[1] * HEADS * CHANNELS * value.element_size()
    compulsory = out + sum(x.numel() * x.element_size() for x in (value, locations, weights))
    row = CHANNELS * value.element_size()
    place = locations.float() * sizes.flip(1).view(1, 1, 1, -1, 1, 2) - 0.5
    limit = sizes.flip(1).view(1, 1, 1, -1, 1, 2)
    low = place.floor()
    within = sum(((low + corner >= 0) & (low + corner < limit)).float() for corner in (0, 1))
    inside = ((place > -1) & (place < limit)).all(-1)
    return compulsory, int((within.prod(-1) * inside).sum().item()) * max(row, LINE)


def copy_bandwidth(megabytes):
    """GB/s read plus written when copying a tensor of this size: large for memory, small for the caches."""
    source = torch.rand(int(megabytes * 2**18))
    target = torch.empty_like(source)
    repeats = max(1, int(64 / megabytes))

    def copy():
        for _ in range(repeats):
            target.copy_(source)

    return 2 * repeats * source.numel() * 4 / timed(copy, 0.5)[1] / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each measurement")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine(options.device)}, torch {torch.__version__}, {options.threads} threads")
    record = {"machine": machine(options.device), "torch": torch.__version__, "threads": options.threads, "rows": []}
    if options.device == "cpu":
        record["copy_gb_per_s"] = {f"{size:g} MB": round(copy_bandwidth(size), 1) for size in (256, 4, 0.25)}
        print("copy, GB/s read + written: " + ", ".join(f"{k} {v}" for k, v in record["copy_gb_per_s"].items()))
    with use_backend("compiled"):
        for name, (sizes, queries, *aims) in CASES.items():
            for near in (False, True):
                dtypes = [torch.float32] if options.device == "cpu" else [torch.float32, torch.bfloat16]
                for dtype in dtypes:
                    data = inputs(sizes, queries, near, dtype, options.device)
                    row = {"case": name, "samples": "near" if near else "anywhere", "dtype": str(dtype)}
                    row |= measure(data, options.seconds)
                    row["compulsory_bytes"], row["corner_bytes"] = bytes_moved(data)
                    record["rows"].append(row)
                    show(row, aims, record.get("copy_gb_per_s"))
        if options.device == "cpu":
            half(record, options.seconds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, options.json)


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
    return (names or [platform.processor() or platform.machine()])[0]


def show(row, aims, bandwidth):
    op, plain = row["op"], row["grid_sample"]
    print(f"\n{row['case']}, samples {row['samples']}, {row['dtype'].removeprefix('torch.')}")
    for way, aim in zip(("forward", "backward"), aims, strict=True):
        times = plain[f"{way}_ms"] / op[f"{way}_ms"]
        wanted = f" (aim {aim}x)" if aim else ""
        print(f"  {way:9} {op[way + '_ms']:8.2f} ms   grid_sample {plain[way + '_ms']:8.1f} ms   {times:5.1f}x{wanted}")
    print(f"  kept for backward {op['kept_bytes'] / 1e6:.0f} MB   grid_sample {plain['kept_bytes'] / 1e6:.0f} MB")
    if bandwidth:
        memory = row["compulsory_bytes"] / 1e6 / bandwidth["256 MB"]
        rate = row["corner_bytes"] / 1e6 / op["forward_ms"]
        print(
            f"  forward must move {row['compulsory_bytes'] / 1e6:.0f} MB: {memory:.1f} ms at copy speed; its samples "
            f"read {row['corner_bytes'] / 1e6:.0f} MB, at {rate:.0f} GB/s, out of the caches"
        )


def half(record, seconds):
    """The encoder with bfloat16 values beside float32 coordinates, as autocast gives them."""
    value, *rest = inputs(DINO, None, False)
    value = value.bfloat16()
    with torch.no_grad():
        median, _ = timed(lambda: ms_deform_attn(value, *rest), seconds)
    record["encoder_bfloat16_forward_ms"] = round(median, 3)
    print(f"\nDINO encoder, samples anywhere, bfloat16 value: forward {median:.2f} ms")


if __name__ == "__main__":
    main()
