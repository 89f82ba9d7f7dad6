"""Named adapters on one base, and swaps on a hub: nothing is sent unless asked, nothing local is in what is sent."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from common import adapters, lora
from common.adapters import share
from common.adapters.named import Named
from common.errors import UserError


class Net(nn.Module):
    def __init__(self, width=64, classes=4, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x)


def saved(folder, number, **sizes):
    """An adapter of one class more, on the base that seed 0 gives."""
    torch.manual_seed(0)
    model = Net(**sizes).eval()
    old = model.head
    model.head = nn.Linear(old.in_features, old.out_features + 1)
    with torch.no_grad():
        model.head.weight[:-1], model.head.bias[:-1] = old.weight, old.bias
    torch.manual_seed(number)
    lora.inject(model, [f"layers.{i}" for i in range(len(model.layers))], 2)
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            layer.lora_B.normal_()
        model.head.weight[-1].normal_()
    rows = {name: [old.out_features] for name in ("head.weight", "head.bias")}
    info = {"classes": [*"abcd", f"new{number}"], "plan": {"groups": {}, "steps": []}}
    adapters.save(model, folder / "adapter", rows, info, list(rows))
    return model


def base(**sizes):
    torch.manual_seed(0)
    return Net(**sizes).eval()


def test_each_name_answers_as_its_own_model_and_the_base_comes_back(tmp_path):
    whole = {f"swap-{i}": saved(tmp_path / f"{i}", i) for i in (1, 2)}
    model, images = base(), torch.randn(3, 64)
    before, parameters = model(images), {id(p) for p in model.parameters()}
    swaps = Named(model, "abcd")
    for i in (1, 2):
        swaps.add(f"swap-{i}", tmp_path / f"{i}")
    for name in ("swap-1", "swap-2", "swap-1"):
        with swaps.using(name) as adapted:
            assert torch.equal(adapted(images), whole[name](images)) and swaps.classes[-1] == f"new{name[-1]}"
        assert torch.equal(model(images), before) and {id(p) for p in model.parameters()} == parameters
    with swaps.using("") as plain:
        assert torch.equal(plain(images), before) and swaps.classes == tuple("abcd")


def test_the_base_comes_back_after_an_error_inside(tmp_path):
    saved(tmp_path / "a", 1)
    model, images = base(), torch.randn(3, 64)
    before, swaps = model(images), Named(model)
    swaps.add("a", tmp_path / "a")
    with pytest.raises(ZeroDivisionError), swaps.using("a"):
        raise ZeroDivisionError
    assert torch.equal(model(images), before)


def test_what_does_not_fit_is_refused_and_leaves_no_trace(tmp_path):
    saved(tmp_path / "a", 1)
    torch.manual_seed(9)
    swaps = Named(Net().eval())
    with pytest.raises(UserError, match="other base weights"):
        swaps.add("a", tmp_path / "a")
    assert swaps.names == [] and not lora.adapters(swaps.model) and len(swaps.model.head.weight) == 4
    good = Named(base())
    good.add("a", tmp_path / "a")
    with pytest.raises(UserError, match="there are: a"), good.using("b"):
        pass
    with good.using("a"), pytest.raises(UserError, match="leave its block first"), good.using("a"):
        pass
    with pytest.raises(UserError, match="already"):
        good.add("a", tmp_path / "a")


def tensor_bytes():
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):  # a fake tensor of another test has no storage
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def test_twenty_adapters_take_less_than_a_twentieth_of_the_model(tmp_path):
    sizes = {"width": 256, "depth": 4, "classes": 100}
    saved(tmp_path / "a", 1, **sizes)
    for i in range(2, 21):
        shutil.copytree(tmp_path / "a", tmp_path / f"{i}")
    bare = tensor_bytes()
    model = base(**sizes)
    alone = tensor_bytes() - bare
    swaps = Named(model)
    for i in range(2, 21):
        swaps.add(f"{i}", tmp_path / f"{i}")
    swaps.add("a", tmp_path / "a")
    with swaps.using("7"):
        pass
    assert len(swaps.names) == 20 and tensor_bytes() - bare <= 1.05 * alone


def test_a_card_states_base_classes_scores_and_licence(tmp_path):
    saved(tmp_path, 1)
    info = {
        **adapters.read(tmp_path / "adapter")[0],
        "base_model": "hf:google/vit",
        "license": "mit",
        "method": "replay",
    }
    info |= {
        "plan": {"groups": {"f": ["a"]}, "steps": [["forget", ["f"]]]},
        "before": {"f": 91.0},
        "scores": {"f": 0.5},
    }
    text = adapters.card({**info, "metric": "acc"})
    block = text.split("---\n")[1]
    assert "license: mit" in block and "base_model: google/vit" in block
    assert "| f | a | 91.0 | 0.5 |" in text and "forget a" in text and info["base_sha256"] in text and "new1" in text
    assert "license" not in adapters.card({**info, "license": ""}).split("---\n")[1]


def test_paths_do_not_leave():
    flags = {"data": "photos", "learn": "a,b", "lr": 0.1, "config_file": "x.yaml", "opts": ["K", "/home/me/x"], "model": "vit",
             "output_dir": "results/x", "checkpoint": "/home/me/base", "class_names": "@names.txt"}  # fmt: skip
    found = share.public(
        {"flags": flags, "identity": {"plan": {"groups": {}}, "seed": 1}, "command": "me", "precision": "fp32"}
    )
    assert found["flags"] == {"learn": "a,b", "lr": 0.1, "model": "vit"} and set(found) == {
        "identity",
        "flags",
        "precision",
    }
    hub = share.public({"flags": {"checkpoint": "hf:google/vit"}, "identity": {"plan": {}}})
    assert hub["flags"] == {"checkpoint": "hf:google/vit"} and not Path("google").exists()
