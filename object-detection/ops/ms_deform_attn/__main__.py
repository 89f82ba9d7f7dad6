"""`python -m ms_deform_attn`: what is built, and whether it computes the right thing; `--build` builds it."""

import argparse
import json
import shutil
import sys
import time

import torch

from ms_deform_attn import library, loader, ms_deform_attn, ms_deform_attn_reference
from ms_deform_attn.building import BuildError, build


def main(arguments: list[str] | None = None) -> int:
    """0 if all that was asked for is built and correct, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ms_deform_attn", description=__doc__)
    parser.add_argument("--build", action="store_true", help="build for the CPU, and for CUDA where a card is")
    parser.add_argument("--cuda", action="store_true", help="with --build: build for CUDA also without a card")
    parser.add_argument("--force", action="store_true", help="with --build: also what is up to date")
    parser.add_argument("--arch", nargs="+", help="with --build: compute capabilities, such as 80 90")
    options = parser.parse_args(arguments)
    built = not options.build or build_all(options.cuda, options.force, options.arch)
    print(f"torch {torch.__version__}")
    return 0 if all([*(report(device) for device in library.DEVICES), built]) else 1


def build_all(cuda: bool = False, force: bool = False, architectures: list[str] | None = None) -> bool:
    """True if everything wanted was built. Prints one line for each device; never raises."""
    good = True
    for device in library.DEVICES:
        if device == "cuda" and not (cuda or torch.cuda.is_available()):
            continue
        if device == "cuda" and not (shutil.which("nvcc") or cuda):
            print("cuda: not built: no nvcc on the PATH; the Triton kernel or plain PyTorch is used")
            continue
        if library.find(device)[0] and not (force or (device == "cuda" and architectures)):
            print(f"{device}: up to date")
            continue
        start = time.monotonic()
        try:
            path = build(device, architectures=architectures)
            print(f"{device}: built {path} in {time.monotonic() - start:.0f} s")
        except BuildError as error:
            good = False
            print(f"{device}: not built, plain PyTorch will be used. {error}", file=sys.stderr)
    loader.forget()
    return good


def report(device: str) -> bool:
    """False if there is a kernel for `device` that computes something else than plain PyTorch. Prints what is there."""
    path, reason = library.find(device)
    if path is None:
        print(f"{device}: plain PyTorch ({reason}); to build: {loader.BUILD_COMMAND}")
        return True
    manifest = json.loads(path.with_suffix(".json").read_text())
    kinds = manifest.get("instruction_sets") or manifest.get("architectures")
    print(f"{device}: {path}\n  for {', '.join(kinds)}; compiled in {manifest['seconds']} s")
    if device == "cuda" and not torch.cuda.is_available():
        print("  no card here, not tested")
        return True
    with loader.use_backend("compiled"):
        if device == "cpu":
            print(f"  in use: {loader.native(device).use('')}")
        error = self_test(device)
    print(f"  self-test: largest difference from plain PyTorch {error:.1e}, {'good' if error < 1e-4 else 'WRONG'}")
    return error < 1e-4


def self_test(device: str) -> float:
    """Largest difference between kernel and plain PyTorch, over the output and the gradients, in float32."""
    generator = torch.Generator().manual_seed(0)
    sizes, starts = torch.tensor([[9, 7], [4, 3]]), torch.tensor([0, 63])
    shapes = (2, 75, 4, 32), (2, 11, 4, 2, 3, 2), (2, 11, 4, 2, 3)
    inputs = [torch.rand(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    results = []
    for function in (ms_deform_attn, ms_deform_attn_reference):
        value, locations, weights = inputs
        out = function(value, sizes.to(device), starts.to(device), locations, weights)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))


if __name__ == "__main__":
    sys.exit(main())
