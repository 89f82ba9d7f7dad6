"""The fast CPU product is F.linear with other rounding, to the second derivative."""

import pytest
import torch
import torch.nn.functional as F

from common.fast import products
from common.layers import Linear, keep_freed_memory, linear, short_softmax, sum_first
from common.lora import LoRALinear, adapters
from common.lora.attention import LoRAMultiheadAttention


@pytest.mark.parametrize("shape", [(5, 12), (2, 300, 12), (0, 12), (1, 12)])
@pytest.mark.parametrize("outputs", [3, 40])
def test_product_and_gradients_equal_those_of_torch(shape, outputs):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(outputs, 12), torch.randn(outputs)
    results = []
    for function in (linear, F.linear):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        out = function(*inputs)
        gradients = torch.autograd.grad(out.square().sum() / max(1, out.numel()), inputs, create_graph=True)
        second = torch.autograd.grad(gradients[1].square().sum(), inputs)
        results.append((out, *gradients, *second))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_result_may_be_written_into():
    layer, x = Linear(8, 6), torch.randn(2, 4, 8, requires_grad=True)
    expected = F.linear(x, layer.weight, layer.bias).relu().sum()
    (wanted,) = torch.autograd.grad(expected, x)
    (got,) = torch.autograd.grad(layer(x).relu_().sum(), x)
    torch.testing.assert_close(got, wanted)


def test_other_number_formats_and_autocast_take_the_plain_path():
    layer = Linear(8, 6)
    assert linear(torch.randn(3, 8).double(), layer.weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype == torch.bfloat16


def test_keeping_memory_answers_whether_it_could():
    assert keep_freed_memory() in (True, False)


def test_short_softmax_is_softmax_to_the_second_derivative():
    torch.manual_seed(0)
    x = (50 * torch.randn(3, 5, 12)).requires_grad_()
    for mine, torchs in zip(*(_derivatives(f, x) for f in (short_softmax, lambda x: x.softmax(-1))), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


def _derivatives(function, x):
    out = function(x)
    (first,) = torch.autograd.grad((out * torch.linspace(-1, 1, 12)).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return out, first, second


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.setattr(products, "SMALL", 5 * 12 * 4)
    monkeypatch.setattr(products._Product, "apply", lambda *inputs: "oneDNN")
    x, weight = torch.randn(5, 12), torch.randn(4, 12)
    assert torch.equal(linear(x[:4], weight), F.linear(x[:4], weight))
    assert linear(x, weight) == "oneDNN"


@pytest.mark.parametrize("rank, fewer", [(4, False), (12, True)])
def test_an_update_is_summed_first_where_that_takes_fewer_multiplications(rank, fewer):
    weight, rows = torch.randn(40, 30), 500
    together = 3 * rows * 40 * 30 + 3 * rank * 40 * 30
    apart = 2 * rows * 40 * 30 + 3 * rows * rank * (40 + 30)
    assert fewer == (together < apart) == sum_first(torch.randn(rows, 30), weight, rank)
    with torch.no_grad():
        assert sum_first(torch.randn(rows, 30), weight, rank) and not sum_first(torch.randn(9, 30), weight, rank)


@pytest.mark.parametrize("kind", ["linear", "attention"])
@pytest.mark.parametrize("stacked", [False, True])
def test_an_update_that_is_summed_first_gives_the_same_answer_and_gradients(kind, stacked):
    torch.manual_seed(0)
    if kind == "linear":
        layer = LoRALinear(Linear(16, 16), rank=8, alpha=4)
        call, x = layer, torch.randn(40, 16)
    else:
        layer = LoRAMultiheadAttention(torch.nn.MultiheadAttention(16, 2), rank=8, alpha=4)
        call, x = (lambda q: layer(q, 2 * q, 3 * q, need_weights=False)[0]), torch.randn(40, 3, 16)
    for module in adapters(layer).values():
        torch.nn.init.normal_(module.lora_B)
        if stacked:
            module.stack()
            torch.nn.init.normal_(module.lora_B)
    factors = [p for module in adapters(layer).values() for p in module.live()]
    x.requires_grad_()
    assert sum_first(x, layer.base_weight()[:16], 8)
    found = []
    for on in (True, False):
        products.switch(on)
        try:
            answer = call(x)
            found.append((answer, *torch.autograd.grad(answer.square().sum(), [x, *factors])))
        finally:
            products.switch(True)
    for summed, apart in zip(*found, strict=True):
        torch.testing.assert_close(summed, apart, rtol=1e-4, atol=1e-3)
