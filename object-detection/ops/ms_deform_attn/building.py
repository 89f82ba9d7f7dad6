"""Compiles the kernels. Needs a C++20 compiler; for CUDA, nvcc. Needs no GPU and no Python headers."""

import contextlib
import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ms_deform_attn import library

WARNINGS = ["-Wall", "-Wno-maybe-uninitialized", "-Wno-ignored-attributes"]
COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", *WARNINGS]
# Comparisons and conversions may be hoisted over branches, or nothing vectorises; NaN and infinity keep their meaning.
KERNEL = ["-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# Plain vectors of 16 bytes (SSE2, NEON) are in every 64-bit machine.
INSTRUCTION_SETS = {
    "plain": ["-DKSDA_BYTES=16"],
    "avx2": ["-DKSDA_BYTES=32", *AVX2],
    "avx512": ["-DKSDA_BYTES=64", *AVX512],
}


class BuildError(Exception):
    """Why there is no library; the last lines say what to do."""


class _Plan(NamedTuple):
    """Commands that compile, independent of each other; the one that links; what the library is for."""

    compile: list[list[str]]
    link: list[str]
    contents: dict[str, list[str]]


def build(device: str, *, architectures: list[str] | None = None, extra: tuple[str, ...] = ()) -> Path:
    """Path of the library built for `device` ("cpu" or "cuda").

    Args:
        architectures: for CUDA, such as ["80", "90"]; default: the cards at hand, else TORCH_CUDA_ARCH_LIST, else
            all this nvcc knows from sm_70 to sm_90.
        extra: flags for every compiler and linker call.

    Raises:
        BuildError: if a tool is missing or the compiler fails; nothing is left behind.
    """
    folder = _writable_folder()
    with _one_at_a_time(folder / f"{device}.lock"), tempfile.TemporaryDirectory(dir=folder) as temporary:
        plan = _cpu_plan(extra) if device == "cpu" else _cuda_plan(architectures or default_architectures(), extra)
        work = Path(temporary)
        start = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(partial(_run, work), plan.compile))
        _run(work, plan.link)
        manifest = library.key(device) | {"seconds": round(time.monotonic() - start, 1)} | plan.contents
        (work / f"{device}.json").write_text(json.dumps(manifest, indent=1) + "\n")
        for name in (f"{device}.so", f"{device}.json"):  # renaming leaves a library in use alone
            os.replace(work / name, folder / name)
    return folder / f"{device}.so"


def compiler() -> list[str]:
    """Command of the C++ compiler: $CXX, else c++, g++ or clang++.

    Raises:
        BuildError: if there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    raise BuildError("no C++ compiler found; install g++ (apt install g++) or set CXX")


def nvcc() -> str:
    """Path of nvcc: on the PATH, or under CUDA_HOME.

    Raises:
        BuildError: if there is none.
    """
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    if not found:
        raise BuildError("no nvcc found; install the CUDA toolkit or set CUDA_HOME")
    return found


def cuda_home() -> Path:
    """Folder of the CUDA toolkit: that of nvcc, CUDA_HOME or /usr/local/cuda, whichever has the headers.

    Raises:
        BuildError: if none has.
    """
    places = [os.environ.get("CUDA_HOME"), Path(nvcc()).resolve().parent.parent, "/usr/local/cuda"]
    for place in places:
        if place and (Path(place) / "include" / "cuda_runtime.h").exists():
            return Path(place)
    raise BuildError("nvcc is there but not cuda_runtime.h; set CUDA_HOME to the toolkit's folder")


def default_architectures() -> list[str]:
    """Compute capabilities to compile for, such as ["80", "90"]."""
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        return sorted({"{}{}".format(*torch.cuda.get_device_capability(card)) for card in cards})
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted:
        return sorted(set(re.sub(r"\+PTX|\.", "", item) for item in re.split(r"[;, ]+", wanted)))
    known = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = {line.removeprefix("compute_") for line in known.split()}
    return [name for name in ("70", "75", "80", "86", "89", "90") if name in known]


def _cpu_plan(extra: tuple[str, ...]) -> _Plan:
    sources, tool = library.SOURCES / "cpu", compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    define = ["-DKSDA_X86"] if x86 else []
    kinds = [name for name in INSTRUCTION_SETS if x86 or name == "plain"]
    jobs = []
    for name in kinds:
        flags = [*COMMON, *KERNEL, f"-DKSDA_ISA={name}", *INSTRUCTION_SETS[name], *define, *extra]
        jobs.append(_compile(tool, sources / "kernels.cpp", flags, name))
    jobs.append(_compile(tool, sources / "op.cpp", [*COMMON, *define, *_torch_flags(), *extra]))
    return _Plan(jobs, _link("cpu.so", jobs, ["torch_cpu", "c10"], extra), {"instruction_sets": kinds})


def _cuda_plan(architectures: list[str], extra: tuple[str, ...]) -> _Plan:
    sources, home, newest = library.SOURCES / "cuda", cuda_home(), architectures[-1]
    codes = [(name, f"sm_{name}") for name in architectures] + [(newest, f"compute_{newest}")]  # newer cards: PTX
    device_flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", "--threads=0"]
    device_flags += [f"-gencode=arch=compute_{name},code={code}" for name, code in codes]
    host_flags = [*COMMON, *_torch_flags(), "-isystem", f"{home / 'include'}", *extra]
    jobs = [
        _compile([nvcc()], sources / "kernels.cu", device_flags),
        _compile(compiler(), sources / "op.cpp", host_flags),
    ]
    libraries = ["torch_cpu", "torch_cuda", "c10", "c10_cuda", "cudart"]
    paths = tuple(f"-L{path}" for path in (home / "lib64", home / "targets/x86_64-linux/lib") if path.exists())
    link = _link("cuda.so", jobs, libraries, extra + paths)
    return _Plan(jobs, link, {"architectures": sorted({code for _, code in codes})})


def _torch_flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    # Compiled for OpenMP but not linked with it: the symbols come from the library torch has already loaded, so
    # that there is one thread pool, torch's.
    openmp = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return ["-isystem", f"{include}", "-isystem", f"{include / 'torch/csrc/api/include'}", abi, *openmp]


def _compile(tool: list[str], source: Path, flags: list[str], name: str = "") -> list[str]:
    return [*tool, *flags, "-c", str(source), "-o", f"{name or source.stem}.o"]


def _link(target: str, jobs: list[list[str]], libraries: list[str], extra: tuple[str, ...]) -> list[str]:
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    path, names = f"-L{Path(torch.__file__).parent / 'lib'}", [f"-l{name}" for name in libraries]
    return [*compiler(), *shared, "-o", target, *(job[-1] for job in jobs), path, *extra, *names]


def _run(folder: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError("the compiler failed:\n" + "\n".join(done.stdout.splitlines()[-30:]))


def _writable_folder() -> Path:
    for folder in library.folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise BuildError(f"none of these folders is writable: {', '.join(map(str, library.folders()))}")


@contextlib.contextmanager
def _one_at_a_time(path: Path):
    # several ranks may build on first use; the operating system releases the lock of one that dies
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
