"""The operator within torch: opcheck, compile, export, autocast, vmap, checkpointing, DDP."""

import os

import pytest
import torch
import torch.distributed as dist
from ms_deform_attn import loader, ms_deform_attn
from msda import build_once, case, gradients
from processes import beside
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.fixture(params=["compiled", "reference"])
def backend(request):
    if request.param == "compiled":
        build_once()
    with loader.use_backend(request.param):
        yield request.param


class Layer(nn.Module):
    """A deformable attention layer with the operator in it and nothing more than it needs."""

    def __init__(self, channels=16, heads=2, levels=2, points=2):
        super().__init__()
        self.shape = heads, levels, points
        self.value = nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)

    def forward(self, queries, tokens, sizes, starts):
        batch, count, channels = queries.shape
        heads, levels, points = self.shape
        value = self.value(tokens).unflatten(-1, (heads, -1))
        locations = 0.5 + 0.1 * self.offsets(queries).view(batch, count, heads, levels, points, 2)
        weights = self.weights(queries).view(batch, count, heads, levels * points).softmax(-1)
        weights = weights.view(batch, count, heads, levels, points)
        return ms_deform_attn(value, sizes, starts, locations, weights)


def layer_inputs(batch=2):
    torch.manual_seed(0)
    sizes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    return torch.randn(batch, 6, 16), torch.randn(batch, 26, 16), sizes, starts


def grads_of(layer, run, inputs):
    layer.zero_grad()
    out = run(*inputs)
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]


def assert_all_close(got, wanted, **limits):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **limits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case(dtype=dtype)]
    limits = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.5}
    torch.library.opcheck(torch.ops.ms_deform_attn.forward.default, tuple(inputs), **limits)
    out = torch.randn(2, 7, 24, dtype=dtype)
    plain = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.ms_deform_attn.backward.default, (out, *plain), **limits)


def test_compile_has_one_graph_with_and_without_dynamic_shapes(backend):
    layer, inputs = Layer(), layer_inputs()
    wanted = grads_of(layer, layer, inputs)
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        assert_all_close(grads_of(layer, compiled, inputs), wanted)
    assert_all_close(grads_of(layer, compiled, layer_inputs(3)), grads_of(layer, layer, layer_inputs(3)))


@pytest.mark.slow
def test_compile_with_inductor():
    build_once()
    inputs = case(dtype=torch.float32)
    torch.compiler.reset()

    @torch.compile(fullgraph=True)
    def compiled(*inputs):
        return ms_deform_attn(*inputs) * 2

    got, wanted = gradients(compiled, inputs), gradients(lambda *x: 2 * ms_deform_attn(*x), inputs)
    assert_all_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_export(backend):
    layer, inputs = Layer().eval(), layer_inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, inputs, dynamic_shapes=({0: batch}, {0: batch}, None, None))
    assert "ms_deform_attn.forward" in program.graph_module.code
    bigger = layer_inputs(5)
    torch.testing.assert_close(program.module()(*bigger), layer(*bigger))


def test_meta_tensors_have_the_shape_only():
    out = ms_deform_attn(*(x.to("meta") for x in case()))
    assert out.is_meta and out.shape == (2, 7, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_halves_the_value_and_keeps_coordinates(backend, dtype):
    value, sizes, starts, locations, weights = case(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        out = ms_deform_attn(value, sizes, starts, locations, weights)
        mixed = ms_deform_attn(value, sizes, starts, locations, weights.to(dtype))
    assert out.dtype == mixed.dtype == dtype
    assert torch.equal(out, ms_deform_attn(value.to(dtype), sizes, starts, locations, weights))
    with torch.autocast("cpu", dtype):
        leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
        ms_deform_attn(leaves[0], sizes, starts, *leaves[1:]).float().sum().backward()
        assert all(x.grad.dtype == torch.float32 for x in leaves)
        doubles = case(dtype=torch.float64)
        assert ms_deform_attn(*doubles).dtype == torch.float64


def test_vmap_over_everything_but_the_levels(backend):
    one, other = case(seed=1), case(seed=2)
    value, locations, weights = (torch.stack([one[i], other[i]], 1) for i in (0, 3, 4))
    mapped = torch.func.vmap(ms_deform_attn, in_dims=(1, None, None, 1, 1))
    wanted = torch.stack([ms_deform_attn(*one), ms_deform_attn(*other)])
    torch.testing.assert_close(mapped(value, one[1], one[2], locations, weights), wanted)
    shared = torch.func.vmap(ms_deform_attn, in_dims=(None, None, None, 1, None))
    got = shared(one[0], one[1], one[2], locations, one[4])
    torch.testing.assert_close(got[1], ms_deform_attn(*one[:3], other[3], one[4]))
    with pytest.raises(ValueError, match="`spatial_shapes`"):
        torch.func.vmap(ms_deform_attn, in_dims=(1, 0, None, 1, 1))(
            value, torch.stack([one[1]] * 2), one[2], locations, weights
        )


def test_gradients_through_vmap(backend):
    inputs = case()
    leaves = [x.clone().requires_grad_() for x in (inputs[0], *inputs[3:])]
    split = [x.unsqueeze(1) for x in leaves]
    out = torch.func.vmap(ms_deform_attn, in_dims=(0, None, None, 0, 0))(split[0], *inputs[1:3], *split[1:])
    assert_all_close(
        torch.autograd.grad(out.sum(), leaves), gradients(ms_deform_attn, inputs, torch.ones(2, 7, 24))[1:]
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(backend, reentrant):
    layer, (queries, *rest) = Layer(), layer_inputs()
    queries.requires_grad_()
    wanted = grads_of(layer, layer, (queries, *rest))
    got = grads_of(layer, lambda *x: checkpoint(layer, *x, use_reentrant=reentrant), (queries, *rest))
    assert_all_close(got, wanted, rtol=0, atol=0)


def _rank(number, world, folder, first=0):
    torch.set_num_threads(1)
    rank = first + number
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    layer = nn.parallel.DistributedDataParallel(Layer())
    queries, tokens, sizes, starts = layer_inputs()
    layer(queries[rank : rank + 1], tokens[rank : rank + 1], sizes, starts).square().sum().backward()
    torch.save([parameter.grad for parameter in layer.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_averages_the_gradients(tmp_path):
    build_once()
    with beside(_rank, 2, os.fspath(tmp_path), 1):
        _rank(0, 2, os.fspath(tmp_path))
    torch.manual_seed(0)
    layer = Layer()
    wanted = grads_of(layer, layer, layer_inputs())[1:]
    for rank in (0, 1):
        assert_all_close([2 * grad for grad in torch.load(tmp_path / f"{rank}.pt")], wanted)


def test_inference_mode_and_unused_gradients(backend):
    inputs = case()
    with torch.inference_mode():
        out = ms_deform_attn(*inputs)
    assert torch.equal(out, ms_deform_attn(*inputs))
    value = inputs[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(ms_deform_attn(value, *inputs[1:]).sum(), value)
    torch.testing.assert_close(grad, gradients(ms_deform_attn, inputs, torch.ones(2, 7, 24))[1])
