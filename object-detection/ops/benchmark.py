"""Times the operator against grid_sample, counts the bytes it must move, and weighs them against this machine's memory."""

import sys
from functools import partial
from itertools import product

import torch
from ms_deform_attn import ms_deform_attn, use_backend
from ms_deform_attn.reference import sum_of_samples

from common import timing
from common.cli import main

HEADS, CHANNELS, POINTS = 8, 32, 4
DINO = ((100, 167), (50, 84), (25, 42), (13, 21))
CASES = {  # name: levels, queries or None for one per token
    "DINO encoder": (DINO, None),
    "DINO decoder": (DINO, 900),
    "Mask2Former 640 px": (((80, 80), (40, 40), (20, 20)), None),
}
LINE = 64  # bytes moved at least for any read


def inputs(sizes, queries, near, dtype, device):
    """Operator inputs, only the value in `dtype`, as under autocast; samples within a few pixels of their query (`near`), as in a model, or anywhere."""
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
    return value.to(device, dtype), torch.tensor(sizes), torch.tensor(starts), locations.to(device), weights.to(device)


def kept_bytes(function, leaves):
    """Bytes of distinct storage that autograd keeps for backward."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x) is None or x, lambda x: x
    ):
        function(*leaves)
    return sum(x.untyped_storage().nbytes() for x in kept.values() if x.is_floating_point())


def measure(data, options):
    """{way: {forward, backward (seconds, medians), kept (bytes)}} for the operator and grid_sample."""
    value, sizes, starts, locations, weights = data
    size_list, start_list = [tuple(x) for x in sizes.tolist()], starts.tolist()
    ways = {
        "op": lambda v, l, w: ms_deform_attn(v, sizes, starts, l, w),
        "grid_sample": lambda v, l, w: sum_of_samples(v.to(l.dtype), size_list, start_list, l, w),
    }
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    results = {}
    for name, function in ways.items():
        timed = timing.measure({name: partial(step, function, leaves)}, options)[name]
        results[name] = {**timed.medians(), "kept_bytes": kept_bytes(function, leaves)}
    return results


def step(function, leaves, watch):
    """One forward and one backward pass."""
    out = function(*leaves)
    watch.lap("forward")
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    watch.lap("backward")


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
    return (
        2
        * repeats
        * source.nbytes
        / timing.fastest(lambda: [target.copy_(source) for _ in range(repeats)], "wall")
        / 1e9
    )


def run(argv):
    parser = timing.make_parser(__doc__, steps=10, warm_up=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    on_cpu = options.device == "cpu"
    machine = torch.backends.cpu.get_cpu_capability() if on_cpu else torch.cuda.get_device_name()
    print(f"{machine}, torch {torch.__version__}, {options.threads} threads")
    record = {"machine": machine, "rows": []}
    if on_cpu:
        record["copy_gb_per_s"] = {f"{size:g} MB": round(copy_bandwidth(size), 1) for size in (256, 4, 0.25)}
        print("copy, GB/s read + written: " + ", ".join(f"{k} {v}" for k, v in record["copy_gb_per_s"].items()))
    with use_backend("compiled"):
        for name, near, dtype in product(CASES, (False, True), (torch.float32, torch.bfloat16)):
            data = inputs(*CASES[name], near, dtype, options.device)
            row = {"case": name, "samples": "near" if near else "anywhere", "dtype": str(dtype)}
            row |= measure(data, options)
            row["compulsory_bytes"], row["corner_bytes"] = bytes_moved(data)
            record["rows"].append(row)
            show(row, record.get("copy_gb_per_s"))
    timing.save(options, {options.device: record})


def show(row, bandwidth):
    op, plain = row["op"], row["grid_sample"]
    print(f"\n{row['case']}, samples {row['samples']}, {row['dtype'].removeprefix('torch.')}")
    for way in ("forward", "backward"):
        ours, theirs = 1e3 * op[way], 1e3 * plain[way]
        print(f"  {way:9} {ours:8.2f} ms   grid_sample {theirs:8.1f} ms   {theirs / ours:5.1f}x")
    print(f"  kept for backward {op['kept_bytes'] / 1e6:.0f} MB   grid_sample {plain['kept_bytes'] / 1e6:.0f} MB")
    if bandwidth:
        least, read = row["compulsory_bytes"] / 1e9, row["corner_bytes"] / 1e9  # GB
        seconds, rate = least / bandwidth["256 MB"], read / op["forward"]
        print(
            f"  forward must move {1e3 * least:.0f} MB: {1e3 * seconds:.1f} ms at copy speed, "
            f"{seconds / op['forward']:.0%} of the limit"
        )
        print(f"  its samples read {1e3 * read:.0f} MB, at {rate:.0f} GB/s, out of the caches")


if __name__ == "__main__":
    sys.exit(main(run))
