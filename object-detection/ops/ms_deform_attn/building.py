"""Compiles the kernels with ninja. Needs a C++20 compiler; for CUDA, nvcc. Needs no GPU and no Python headers."""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
        rules = _cpu_rules(extra) if device == "cpu" else _cuda_rules(architectures or default_architectures(), extra)
        work = Path(temporary)
        (work / "build.ninja").write_text(rules)
        start = time.monotonic()
        _run([_ninja(), "-C", str(work)])
        manifest = library.key(device) | {"seconds": round(time.monotonic() - start, 1)} | _contents(device, rules)
        (work / f"{device}.json").write_text(json.dumps(manifest, indent=1) + "\n")
        for name in (f"{device}.so", f"{device}.json"):  # renaming leaves a library in use alone
            os.replace(work / name, folder / name)
    return folder / f"{device}.so"


def compiler() -> str:
    """Command of the C++ compiler: $CXX, else c++, g++ or clang++.

    Raises:
        BuildError: if there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
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


def _cpu_rules(extra: tuple[str, ...]) -> str:
    sources = library.SOURCES / "cpu"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    define = ["-DKSDA_X86"] if x86 else []
    lines = _rule("cxx", f"{compiler()} $flags -c $in -o $out")
    objects = []
    for name, flags in INSTRUCTION_SETS.items():
        if x86 or name == "plain":
            flags = [*COMMON, *KERNEL, f"-DKSDA_ISA={name}", *flags, *define, *extra]
            lines += _edge("cxx", f"{name}.o", sources / "kernels.cpp", flags)
            objects.append(f"{name}.o")
    lines += _edge("cxx", "op.o", sources / "op.cpp", [*COMMON, *define, *_torch_flags(), *extra])
    return "\n".join(lines + _link("cpu.so", [*objects, "op.o"], ["torch_cpu", "c10"], extra))


def _cuda_rules(architectures: list[str], extra: tuple[str, ...]) -> str:
    sources, home = library.SOURCES / "cuda", cuda_home()
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")  # newer cards: PTX
    device_flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", "--threads=0", *codes]
    host_flags = [*COMMON, *_torch_flags(), f"-isystem {home / 'include'}", *extra]
    lines = _rule("cxx", f"{compiler()} $flags -c $in -o $out")
    lines += _rule("nvcc", f"{nvcc()} $flags -c $in -o $out")
    lines += _edge("nvcc", "kernels.o", sources / "kernels.cu", device_flags)
    lines += _edge("cxx", "op.o", sources / "op.cpp", host_flags)
    libraries = ["torch_cpu", "torch_cuda", "c10", "c10_cuda", "cudart"]
    paths = tuple(f"-L{path}" for path in (home / "lib64", home / "targets/x86_64-linux/lib") if path.exists())
    return "\n".join(lines + _link("cuda.so", ["kernels.o", "op.o"], libraries, extra + paths))


def _torch_flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    # Compiled for OpenMP but not linked with it: the symbols come from the library torch has already loaded, so
    # that there is one thread pool, torch's.
    openmp = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return [f"-isystem {include}", f"-isystem {include / 'torch/csrc/api/include'}", abi, *openmp]


def _rule(name: str, command: str) -> list[str]:
    return [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]


def _edge(rule: str, target: str, source: Path, flags: list[str]) -> list[str]:
    escaped = str(source).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
    return [f"build {target}: {rule} {escaped}", f"  flags = {' '.join(flags)}"]


def _link(target: str, objects: list[str], libraries: list[str], extra: tuple[str, ...]) -> list[str]:
    shared = "-dynamiclib -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    path = f"-L{Path(torch.__file__).parent / 'lib'}"
    names = " ".join(f"-l{name}" for name in libraries)
    return [
        *_rule("link", f"{compiler()} {shared} -o $out $in {path} {' '.join(extra)} {names}"),
        f"build {target}: link {' '.join(objects)}",
        f"default {target}",
        "",
    ]


def _contents(device: str, rules: str) -> dict[str, list[str]]:
    if device == "cuda":
        return {"architectures": sorted(set(re.findall(r"code=((?:sm|compute)_\w+)", rules)))}
    return {"instruction_sets": [name for name in INSTRUCTION_SETS if f"build {name}.o" in rules]}


def _ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if not found:
        raise BuildError("ninja is missing; run: pip install ninja")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
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
