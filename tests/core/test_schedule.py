"""The learning rate of a step."""

import pytest
import torch

from common.schedule import learning_rate


def test_the_published_cosine_moves_once_per_epoch():
    """Five epochs from 1e-2 to 1e-5, as a scheduler that steps after each epoch gives them."""
    per_epoch, epochs = 7, 5
    rates = [learning_rate(s, 35, 1e-2, 1e-5, "cosine", per_epoch=per_epoch) for s in range(35)]
    published = [1.0e-2, 9.046e-3, 6.5485e-3, 3.4615e-3, 9.640e-4]
    for epoch in range(epochs):
        assert len(set(rates[epoch * per_epoch : (epoch + 1) * per_epoch])) == 1
        assert rates[epoch * per_epoch] == pytest.approx(published[epoch], rel=1e-4)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-5)
    for epoch in range(epochs):
        assert rates[epoch * per_epoch] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_cosine_falls_from_peak_to_low():
    rates = [learning_rate(s, 100, 1.0, 0.1, "cosine") for s in range(101)]
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_is_linear_and_never_starts_at_zero():
    rates = [learning_rate(s, 100, 1.0, 0.0, "constant", warmup=4) for s in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_constant_rate_is_constant():
    assert {learning_rate(s, 10, 0.3, 0.1, "constant") for s in range(10)} == {0.3}
