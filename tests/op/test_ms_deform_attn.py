"""What the operator computes: by definition, against plain PyTorch, for every instruction set, and for bad input."""

import pytest
import torch
from ms_deform_attn import loader, ms_deform_attn, ms_deform_attn_reference
from msda import build_once, case, gradients

SETS = ("plain", "avx2", "avx512")


@pytest.fixture(params=["compiled", "reference"])
def backend(request):
    if request.param == "compiled":
        build_once()
    with loader.use_backend(request.param):
        yield request.param


@pytest.fixture(params=SETS)
def instruction_set(request):
    build_once()
    kernels = loader.native("cpu")
    if request.param not in kernels.names():
        pytest.skip(f"this processor has no {request.param}")
    before = kernels.use(request.param)
    with loader.use_backend("compiled"):
        yield request.param
    kernels.use(before)


def by_definition(value, sizes, starts, locations, weights):
    """Equation 3, one pixel at a time."""
    batch, _, heads, channels = value.shape
    out = value.new_zeros(batch, locations.shape[1], heads, channels)
    for n, q, m, l, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = sizes[l].tolist()
        x, y = (locations[n, q, m, l, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in range(height):
            for column in range(width):
                near = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                pixel = value[n, starts[l] + row * width + column, m]
                out[n, q, m] += near * weights[n, q, m, l, p] * pixel
    return out.flatten(2)


def test_output_follows_the_definition(backend):
    inputs = case(batch=1, queries=3, heads=2, channels=4)
    torch.testing.assert_close(ms_deform_attn(*inputs), by_definition(*inputs))


@pytest.mark.parametrize("channels", [1, 4, 30, 32, 48, 64, 71, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_agrees_with_plain_pytorch(instruction_set, channels, dtype):
    inputs = case(channels=channels, dtype=dtype)
    exact = gradients(ms_deform_attn_reference, [x.double() if x.is_floating_point() else x for x in inputs])
    for got, wanted in zip(gradients(ms_deform_attn, inputs), exact, strict=True):
        limit = 1e-12 if dtype == torch.float64 else 1e-5
        assert got.dtype == dtype
        assert (got - wanted).abs().max() <= limit * wanted.abs().max()


@pytest.mark.parametrize("queries", [1, 5, 400])  # few queries read `value` in place, many a copy per head
@pytest.mark.parametrize("points, levels", [(1, 1), (3, 2), (4, 4), (5, 7)])
def test_any_number_of_queries_levels_and_points(instruction_set, queries, points, levels):
    sizes = tuple((9 - level, 3 + 2 * level) for level in range(levels))
    inputs = case(queries=queries, sizes=sizes, points=points, channels=16, dtype=torch.float32)
    wanted = gradients(ms_deform_attn_reference, inputs)
    for got, expected in zip(gradients(ms_deform_attn, inputs), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coordinates", ["half", "float32"])
@pytest.mark.parametrize("queries", [3, 200])
def test_half_inputs_are_summed_in_float32(instruction_set, dtype, coordinates, queries):
    inputs = case(channels=32, queries=queries, dtype=dtype)
    if coordinates == "float32":
        inputs = (*inputs[:3], inputs[3].float(), inputs[4].float())
    upstream = torch.linspace(-1, 1, 2 * queries * 96).to(dtype).view(2, queries, 96)
    doubles = [x.double() if x.is_floating_point() else x for x in inputs]
    exact = gradients(ms_deform_attn_reference, doubles, upstream)
    step = torch.finfo(dtype).eps
    for got, wanted in zip(gradients(ms_deform_attn, inputs, upstream), exact, strict=True):
        assert got.dtype in (dtype, inputs[3].dtype)
        assert ((got - wanted).abs() <= step * wanted.abs() + 1e-2 * step * wanted.abs().max()).all()


@pytest.mark.parametrize("bits", [torch.float16, torch.bfloat16])
def test_every_half_number_survives(instruction_set, bits):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(bits)  # all of them, infinities and NaN too
    value = numbers.view(1, 2**13, 1, 8)
    shape = (1, 2**13, 1, 1, 1)
    middle = (torch.arange(2**13).float() + 0.5) / 2**13
    locations = torch.stack([middle, torch.full_like(middle, 0.5)], -1).view(*shape, 2)
    inputs = value, torch.tensor([[1, 2**13]]), torch.tensor([0]), locations, torch.ones(shape)
    got = ms_deform_attn(*inputs).flatten()
    near = value.float().view(-1, 8).isfinite().all(1)
    near = near & near.roll(1) & near.roll(-1)  # a neighbour's weight is 0, and 0 * inf is no number
    keep = near.repeat_interleave(8)
    assert keep.sum() > 60000
    torch.testing.assert_close(got[keep], numbers[keep], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [30, 32, 64, 71, 1025])
def test_numerical_gradient_for_the_published_channel_counts(instruction_set, channels):
    """The published operator's own check: 2 heads, 2 queries, levels 6x4 and 3x2, 2 points, weights summing to 1."""
    value, sizes, starts, locations, weights = case(
        batch=1, queries=2, heads=2, channels=channels, sizes=((6, 4), (3, 2)), spread=0.0
    )
    value = value * 0.01
    weights = weights / weights.sum((-1, -2), keepdim=True)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, l, w: ms_deform_attn(v, sizes, starts, l, w), leaves, fast_mode=channels > 100
    )


def test_numerical_gradient_with_samples_outside(backend):
    value, sizes, starts, locations, weights = case(batch=2, queries=3, heads=2, channels=3, spread=1.0)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, l, w: ms_deform_attn(v, sizes, starts, l, w), leaves)


def test_second_derivative(backend):
    value, sizes, starts, locations, weights = case(batch=1, queries=2, heads=1, channels=3, points=1)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradgradcheck(lambda v, l, w: ms_deform_attn(v, sizes, starts, l, w), leaves)


def test_backward_is_the_same_every_time_and_for_any_number_of_threads():
    build_once()
    inputs = case(queries=300, heads=4, channels=32, sizes=((20, 20), (10, 10)), dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [gradients(ms_deform_attn, inputs) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e38])
@pytest.mark.parametrize("queries", [4, 300])
def test_locations_that_are_no_place_sample_nothing(backend, bad, queries):
    inputs = case(queries=queries, channels=32, dtype=torch.float32)
    inputs[3][:, ::2, :, 0, 1, :] = bad
    elsewhere = inputs[3].clone()
    elsewhere[:, ::2, :, 0, 1, :] = -5.0
    got = gradients(ms_deform_attn, inputs)
    wanted = gradients(ms_deform_attn, (*inputs[:3], elsewhere, inputs[4]))
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("queries", [4, 300])
def test_an_infinite_pixel_spoils_only_what_samples_it(backend, queries):
    inputs = case(batch=1, queries=queries, channels=32, sizes=((6, 5),), dtype=torch.float32, spread=0.0)
    inputs[3][...] = -0.05  # mostly outside: the border pixels have a part, their neighbours beyond the border do not
    inputs[0][:, 7] = float("inf")
    assert ms_deform_attn(*inputs).isfinite().all()


@pytest.mark.parametrize("place", range(5))
def test_non_contiguous_inputs(backend, place):
    inputs = case(channels=32, dtype=torch.float32)
    wanted = ms_deform_attn(*inputs)
    strided = list(inputs)
    strided[place] = torch.stack([inputs[place], torch.zeros_like(inputs[place])], -1)[..., 0]
    assert not strided[place].is_contiguous()
    torch.testing.assert_close(ms_deform_attn(*strided), wanted, rtol=0, atol=0)
    if place not in (1, 2):
        got = gradients(lambda v, s, i, l, w: ms_deform_attn(v.mT.contiguous().mT, s, i, l, w), inputs)
        for a, b in zip(got, gradients(ms_deform_attn, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points"])
def test_empty_inputs_give_empty_or_zero_outputs(backend, empty):
    inputs = case(**{empty: 0})
    out, *grads = gradients(ms_deform_attn, inputs)
    assert out.shape == (inputs[0].shape[0], inputs[3].shape[1], inputs[0].shape[2] * inputs[0].shape[3])
    assert not out.any() and not any(grad.any() for grad in grads)
    assert [grad.shape for grad in grads] == [inputs[0].shape, inputs[3].shape, inputs[4].shape]


def test_a_level_without_pixels_and_no_level_at_all(backend):
    inputs = case(sizes=((6, 5), (0, 4)))
    torch.testing.assert_close(ms_deform_attn(*inputs), by_definition(*inputs))
    assert not gradients(ms_deform_attn, case(sizes=()))[0].any()


def test_levels_may_lie_in_any_order(backend):
    value, sizes, starts, locations, weights = case()
    swapped = torch.cat([value[:, 30:], value[:, :30]], 1)
    got = gradients(ms_deform_attn, (swapped, sizes, torch.tensor([12, 0]), locations, weights))
    wanted = gradients(ms_deform_attn, (value, sizes, starts, locations, weights))
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], torch.cat([wanted[1][:, 30:], wanted[1][:, :30]], 1))


def test_lists_serve_as_shapes(backend):
    value, sizes, starts, locations, weights = case()
    got = ms_deform_attn(value, sizes.tolist(), starts.tolist(), locations, weights)
    assert torch.equal(got, ms_deform_attn(value, sizes, starts, locations, weights))


WRONG = {
    "value has three dimensions": (0, lambda x: x[0], "`value`"),
    "value holds integers": (0, lambda x: x.long(), "`value`"),
    "value is no tensor": (0, lambda x: x.numpy(), "`value`"),
    "more tokens than the shapes say": (0, lambda x: x[:, :-1], "`spatial_shapes`"),
    "shapes are floats": (1, lambda x: x.double(), "`spatial_shapes`"),
    "shapes are transposed": (1, lambda x: x.T[:, :1], "`spatial_shapes`"),
    "a negative size": (1, lambda x: -x, "`spatial_shapes`"),
    "sizes whose product overflows": (1, lambda x: x * 2**33, "`spatial_shapes`"),
    "a start beyond the end": (2, lambda x: x + 20, "`level_start_index`"),
    "a negative start": (2, lambda x: x - 1, "`level_start_index`"),
    "overlapping levels": (2, lambda x: x * 0, "`level_start_index`"),
    "starts for another number of levels": (2, lambda x: x[:1], "`level_start_index`"),
    "locations of another head count": (3, lambda x: x[:, :, :2], "`sampling_locations`"),
    "three coordinates": (3, lambda x: torch.cat([x, x[..., :1]], -1), "`sampling_locations`"),
    "locations of another dtype": (3, lambda x: x.float(), "`sampling_locations`"),
    "locations on another device": (3, lambda x: x.to("meta"), "`sampling_locations`"),
    "locations are None": (3, lambda x: None, "`sampling_locations`"),
    "weights without levels": (4, lambda x: x[:, :, :, 0], "`attention_weights`"),
    "weights of another query count": (4, lambda x: x[:, 1:], "`attention_weights`"),
    "weights of another dtype": (4, lambda x: x.half(), "`attention_weights`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named(backend, name):
    place, change, wanted = WRONG[name]
    inputs = list(case())
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=wanted):
        ms_deform_attn(*inputs)


def test_wrong_gradient_is_named(backend):
    inputs = case()
    with pytest.raises(ValueError, match="`grad_out`"):
        torch.ops.ms_deform_attn.backward(torch.zeros(2, 7, 5, dtype=torch.float64), *inputs)


def test_kept_for_backward_are_the_inputs_and_nothing_else(backend):
    inputs = case()
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ms_deform_attn(*leaves)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in leaves}
