import pytest
import torch
from torch import nn

from common.averaging import MovingAverage
from common.errors import UserError
from common.lora import adapters, inject


def test_average_equals_a_direct_computation():
    p = nn.Parameter(torch.zeros(3))
    average, expected = MovingAverage([p], 0.9), None
    for step in range(5):
        p.data = torch.full((3,), float(step + 1) ** 2)
        average.update()
        expected = p.data.clone() if expected is None else 0.9 * expected + 0.1 * p.data
    torch.testing.assert_close(average.values[0], expected)


def test_the_average_is_applied_to_the_adapter_and_taken_back():
    """Averaging a model whose adapters are merged elsewhere gives the base model; here the average does something."""
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    inject(model, ["0"], 2)
    layer = adapters(model)["0"]
    average = MovingAverage(layer.live(), 0.5)
    average.update()
    base = model(x)
    layer.lora_B.data.normal_()
    average.update()
    own = model(x)
    with average.applied():
        half = model(x)
    assert torch.equal(model(x), own)
    torch.testing.assert_close(half - base, (own - base) / 2)


def test_before_the_first_update_nothing_is_applied():
    p = nn.Parameter(torch.ones(2))
    average = MovingAverage([p], 0.9)
    with average.applied():
        assert torch.equal(p.data, torch.ones(2))


def test_own_parameters_come_back_after_an_error():
    p = nn.Parameter(torch.ones(2))
    average = MovingAverage([p], 0.9)
    average.update()
    p.data += 1
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert torch.equal(p.data, torch.full((2,), 2.0))


def test_state_is_taken_back():
    p = nn.Parameter(torch.ones(2))
    first, second = MovingAverage([p], 0.9), MovingAverage([p], 0.9)
    second.load_state_dict(first.state_dict())
    assert second.values == []
    first.update()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.values[0], first.values[0])
    with pytest.raises(UserError, match="decay"):
        MovingAverage([p], 2)


@pytest.mark.parametrize("warm", [False, True])
def test_without_a_past_the_average_is_the_last_weights_bit_for_bit(warm):
    p = nn.Parameter(torch.randn(5))
    average = MovingAverage([p], 0.0, warm)
    for _ in range(4):
        p.data.normal_()
        average.update()
    assert torch.equal(average.values[0], p.data)


def test_a_warm_average_forgets_its_beginning_and_ends_with_the_decay_asked_for():
    """Of a value that is 1 at first and 0 after, what is left is the product of the decays."""
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    average, left = MovingAverage([p], 0.6, warm=True), 1.0
    average.update()
    p.data.zero_()
    for n in range(1, 31):
        average.update()
        left *= min(0.6, (1 + n) / (10 + n))
    assert average.values[0].item() == pytest.approx(left) and left < 0.6**30


def test_settling_makes_the_average_the_weights_and_starts_a_new_one():
    p = nn.Parameter(torch.zeros(1))
    average = MovingAverage([p], 0.5)
    for value in (0.0, 4.0):
        p.data.fill_(value)
        average.update()
    average.settle()
    assert p.item() == 2.0 and average.values == []
    average.settle()
    assert p.item() == 2.0
    p.data.fill_(9.0)
    average.update()
    assert average.values[0].item() == 9.0
