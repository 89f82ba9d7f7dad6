"""Head rows: some train, the others stay as they are, bit for bit."""

import pytest
import torch
from torch import nn

from common.rows import TrainedRows, put_rows

ROWS = {"weight": [4, 2], "bias": [2, 4]}


def steps(optimizer, layer, count=5, clip=0.0):
    for k in range(count):
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(k))
        nn.functional.cross_entropy(layer(x), torch.arange(8) % 5).backward()
        if clip:
            nn.utils.clip_grad_norm_(layer.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_other_rows_stay_bit_for_bit(kind):
    layer = nn.Linear(3, 5).requires_grad_(False)
    before = [p.clone() for p in layer.parameters()]
    rows = TrainedRows(layer, ROWS)
    steps(kind(rows.parameters.values(), lr=0.1, weight_decay=0.0), layer, clip=0.5)
    for old, new in zip(before, layer.parameters(), strict=True):
        assert torch.equal(new[[0, 1, 3]], old[[0, 1, 3]])
        assert not torch.isclose(new[[2, 4]], old[[2, 4]]).any()


def test_trained_rows_move_as_without_the_mask():
    layer, free = nn.Linear(3, 5).requires_grad_(False), nn.Linear(3, 5)
    free.load_state_dict(layer.state_dict())
    rows = TrainedRows(layer, {"weight": list(range(5)), "bias": list(range(5))})
    steps(torch.optim.AdamW(rows.parameters.values(), weight_decay=0.0), layer)
    steps(torch.optim.AdamW(free.parameters(), weight_decay=0.0), free)
    assert torch.equal(layer.weight, free.weight)


def test_only_the_trained_rows_are_counted():
    assert TrainedRows(nn.Linear(3, 5), ROWS).count() == 2 * 3 + 2
    assert TrainedRows(nn.Linear(3, 5), {"weight": []}).count() == 0


def test_tied_parameters_are_counted_once():
    model = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)])
    model[1].weight = model[0].weight
    assert TrainedRows(model, {"0.weight": [1], "1.weight": [1]}).count() == 3


def test_rows_are_put_and_put_back_exactly():
    layer = nn.Linear(3, 5)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    new = {name: torch.randn(2, *p.shape[1:]) for name, p in layer.named_parameters()}
    before = put_rows(layer, ROWS, new)
    assert torch.equal(layer.weight[4], new["weight"][0]) and torch.equal(layer.weight[0], state["weight"][0])
    put_rows(layer, ROWS, before)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name])
