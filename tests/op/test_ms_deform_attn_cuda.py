"""The CUDA kernels: they compile, and, run thread by thread on the CPU, they compute the right thing."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import msda
import pytest
import torch
from ms_deform_attn import building, library, loader, ms_deform_attn, ms_deform_attn_reference
from msda import case, gradients

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
SOURCES = library.SOURCES / "cuda"


def toolkit() -> Path:
    try:
        return building.cuda_home()
    except building.BuildError as error:
        pytest.skip(str(error))


def test_the_kernels_compile_without_a_gpu(tmp_path):
    toolkit()
    architecture = building.default_architectures()[-1]
    flags = ["-std=c++17", f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xcompiler=-fPIC"]
    command = [building.nvcc(), *flags, "-c", str(SOURCES / "kernels.cu"), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """kernels.cu compiled for the CPU, every thread a fiber."""
    home, compiler = toolkit(), shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++; install it with: apt install g++")
    library = tmp_path_factory.mktemp("host") / "host.so"
    source = Path(msda.__file__).with_name("msda_on_host.cpp")
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{home / 'include'}", f"-I{SOURCES}"]
    done = subprocess.run([compiler, *flags, str(source), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def call(function, inputs, tensors):
    value, sizes, starts, locations, weights = inputs
    shape = (*value.shape, weights.shape[1], *weights.shape[3:])
    numbers = [(ctypes.c_int64 * len(x))(*x) for x in (shape, sizes.flatten().tolist(), starts.tolist())]
    addresses = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    assert function(*numbers, KINDS[value.dtype], KINDS[locations.dtype], addresses) == 0


@pytest.mark.parametrize("channels", [8, 32, 30, 71, 64, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coordinates", ["same", "float32"])
def test_threads_together_compute_output_and_gradients(on_host, channels, dtype, coordinates):
    inputs = case(channels=channels, queries=5, dtype=dtype)
    if coordinates == "float32":
        if dtype in (torch.float32, torch.float64):
            return
        inputs = (*inputs[:3], inputs[3].float(), inputs[4].float())
    inputs[3][0, 0, 0, 0, 0] = float("nan")
    value, _, _, locations, weights = inputs
    out = torch.empty(2, 5, 3 * channels, dtype=dtype)
    call(on_host.host_forward, inputs, [value, locations, weights, out])
    upstream = torch.linspace(-1, 1, out.numel()).to(dtype).view(out.shape)
    sums = torch.zeros(value.shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    grads = [sums, torch.empty_like(locations), torch.empty_like(weights)]
    call(on_host.host_backward, inputs, [upstream, value, locations, weights, *grads])
    exact = gradients(ms_deform_attn_reference, [x.double() if x.is_floating_point() else x for x in inputs], upstream)
    for got, wanted in zip([out, *grads], exact, strict=True):
        limit = 1e-12 if got.dtype == torch.float64 else 2 * torch.finfo(got.dtype).eps + 1e-5
        assert (got - wanted).abs().max() <= limit * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [8, 30, 32, 64, 71])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_on_a_card_as_in_plain_pytorch(channels, dtype):
    if library.find("cuda")[0] is None:
        building.build("cuda")
        loader.forget()
    inputs = [x.cuda() for x in case(channels=channels, queries=50, dtype=dtype)]
    doubles = [x.double() if x.is_floating_point() else x for x in inputs]
    upstream = torch.linspace(-1, 1, 2 * 50 * 3 * channels).to(dtype).view(2, 50, -1).cuda()
    with loader.use_backend("compiled"):
        results = gradients(ms_deform_attn, inputs, upstream)
    for got, wanted in zip(results, gradients(ms_deform_attn_reference, doubles, upstream), strict=True):
        limit = 1e-12 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps + 1e-5
        assert (got - wanted).abs().max() <= limit * wanted.abs().max()
