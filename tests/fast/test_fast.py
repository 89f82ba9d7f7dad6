"""Training computes the same with `common.fast` and without it, and needs it for nothing."""

import json
import subprocess
import sys
from pathlib import Path

import fast_curves
import pytest
import torch
from processes import environment

from common import layers
from common.fast import ffn, products

SCRIPT = Path(fast_curves.__file__)


@pytest.fixture(scope="module")
def fast_losses():
    return fast_curves.curves()


def test_the_environment_switches_the_fast_layers_off():
    code = "from common import layers; raise SystemExit(layers.fast is not None)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(KS_FAST="0")).returncode == 0


def test_losses_are_the_same_without_the_fast_layers(fast_losses):
    command = [sys.executable, SCRIPT, "missing"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    plain = told["losses"]
    assert not told["fast"] and plain.keys() == fast_losses.keys()
    for name, losses in plain.items():
        assert len(set(losses)) == fast_curves.STEPS  # it trains
        assert fast_losses[name] == pytest.approx(losses, rel=1e-4), name


def test_the_fast_layers_are_on_by_default():
    assert layers.fast is not None and layers.Linear is products.Linear and layers.linear is products.linear


def test_every_hot_path_of_the_models_is_the_fast_one(monkeypatch):
    used = set()

    def watched(kind):
        apply = kind.apply
        return lambda *inputs: used.add(kind.__name__) or apply(*inputs)

    for kind in (products._Product, products._Softmax, ffn._FeedForward):
        monkeypatch.setattr(kind, "apply", watched(kind))
    for made, expected in (
        (fast_curves.dino, {"_Product", "_Softmax", "_FeedForward"}),
        (fast_curves.mask2former, {"_Product", "_Softmax", "_FeedForward"}),
        (fast_curves.vit, {"_Product"}),
    ):
        used.clear()
        made()
        assert used == expected, made.__name__


def test_the_switch_turns_products_off_and_on():
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    products.switch(False)
    try:
        assert not products.usable(x, weight)
    finally:
        products.switch(True)
    assert products.usable(x, weight)
