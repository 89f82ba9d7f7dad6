"""The harness of the benchmarks: laps, medians, counted work, memory, and files that keep what is in them."""

import json
import mmap

import pytest
import torch
from torch import nn

from common import timing
from common.fast import switch
from common.layers import Linear


def args(**changes):
    values = timing.make_parser("").parse_args(["--steps", "3", "--warm-up", "1", "--clock", "cpu"])
    for name, value in changes.items():
        setattr(values, name, value)
    return values


def test_medians_are_by_part_and_of_the_sum():
    timed = timing.Timing([{"a": 1.0, "b": 2.0}, {"a": 5.0, "b": 0.0}, {"a": 2.0, "b": 9.0}], 0)
    assert timed.steps() == [3.0, 5.0, 11.0] and timed.medians() == {"a": 2.0, "b": 2.0, "step": 5.0}


def test_steps_take_turns_and_the_first_ones_do_not_count():
    calls = []

    def step(name):
        return lambda watch: (calls.append(name), watch.lap("only"))

    found = timing.measure({"x": step("x"), "y": step("y")}, args())
    assert calls == ["x", "y"] * 4 and [len(timed.laps) for timed in found.values()] == [3, 3]
    assert all(timed.peak > 0 for timed in found.values())


@pytest.mark.parametrize("fast", [True, False])
def test_products_are_counted_forward_and_backward(fast):
    layer, x = Linear(8, 6), torch.randn(5, 8, requires_grad=True)
    switch(fast)
    try:
        assert timing.flops(lambda watch: layer(x).sum().backward()) == 3 * 2 * 5 * 8 * 6
    finally:
        switch(True)


def test_a_peak_is_that_since_the_last_reset():
    timing.reset_peak()
    before = timing.resident()
    with mmap.mmap(-1, 2**26) as place:  # 64 MB that no allocator has in store
        for page in range(0, 2**26, 4096):
            place[page] = 1
    assert timing.resident() >= before + 2**25
    assert timing.peak_memory(torch.device("cpu")) == timing.resident()


def test_figures_stand_beside_others_with_the_flags_they_were_made_with(tmp_path):
    file = tmp_path / "figures.json"
    timing.save(args(json=str(file)), {"a": {"seconds": 1.0}})
    timing.save(args(json=str(file), threads=7), {"b": {"seconds": 2.0}})
    found = json.loads(file.read_text())
    assert found["a"]["seconds"] == 1.0 and found["b"]["flags"]["threads"] == 7
    timing.save(args(), {"c": {}})  # no file was asked for
    assert list(tmp_path.iterdir()) == [file]


def test_a_comparison_gives_time_share_and_ratio(capsys):
    small, large = nn.Linear(64, 64), nn.Linear(512, 512)

    def step(layer):
        return lambda watch: (layer(torch.ones(400, layer.in_features)).sum().backward(), watch.lap("all"))

    makers = {"large": lambda: step(large), "small": lambda: step(small)}
    figures = timing.compare(makers, args(), dict.fromkeys(makers, "fp32"), in_turn=True)
    assert figures["large"]["GFLOP"] == pytest.approx(64 * figures["small"]["GFLOP"])
    assert set(figures["small"]["seconds"]) == {"all", "step"} and figures["large"]["ratio"] > 0
    assert "small is" in capsys.readouterr().out
