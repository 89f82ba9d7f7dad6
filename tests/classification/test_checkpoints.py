import argparse
import copy
import os
import pickle
import types
import zipfile

import numpy as np
import pytest
import torch
from ks_classification import export_published, load_checkpoint
from ks_classification.models.face import FaceTransformer
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from vit_files import bird_logits, google_arrays, one_line, same, tiny_bird, tiny_timm

from common.adapters import remove
from common.errors import UserError
from common.lora import LoraConfig, LoRALinear, adapters, fresh, inject
from common.weights import read_weights

FFN = [f"blocks.{i}.mlp.fc{j}" for i in range(2) for j in (1, 2)]


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("rows", "rank", "attention_rank"), [(100, 0, 0), (105, 8, 0), (200, 3, 0), (7, 2, 4)])
@torch.no_grad()
def test_published_file_computes_its_equations(rows, rank, attention_rank, images):
    state = tiny_bird(rows, rank, attention_rank)
    model = load_checkpoint(state)
    assert isinstance(model, VisionTransformer) and not model.training
    assert len(adapters(model)) == (4 if rank else 0) + (4 if attention_rank else 0)
    same(model(images), bird_logits(state, images))


@torch.no_grad()
def test_adapter_on_the_query_alone_is_read(images):
    state = tiny_bird(attention_rank=4)
    state = {k: v for k, v in state.items() if "lora" not in k or "query" in k}
    same(load_checkpoint(state)(images), bird_logits(state, images))


@torch.no_grad()
def test_adapters_stay_live_and_their_base_is_the_file(images):
    state = tiny_bird(rank=2)
    model = load_checkpoint(state)
    assert all(p.requires_grad for layer in adapters(model).values() for p in layer.live())
    plain = {k: v for k, v in state.items() if "lora" not in k}
    remove(model)
    same(model(images), bird_logits(plain, images))


@torch.no_grad()
def test_lora_alpha_scales_the_update(images):
    state = tiny_bird(rank=2)
    doubled = {k: v * 2 if k.endswith("lora_B") else v for k, v in state.items()}
    same(load_checkpoint(state, lora_alpha=2)(images), load_checkpoint(doubled)(images))


def test_loading_leaves_the_given_tensors_alone(images):
    state = tiny_bird(rank=2)
    before = copy.deepcopy(state)
    model = load_checkpoint(state)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(state[k], before[k]) for k in state)


@pytest.mark.parametrize("wrap", ["model", "state_dict", "model_state_dict", "nested", "ddp", "compiled"])
def test_wrappers_and_prefixes_are_opened(wrap, tmp_path):
    state = tiny_bird(rank=2)
    file = {
        "nested": {"state_dict": {"model": state}},
        "ddp": {"model": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {f"module._orig_mod.{k}": v for k, v in state.items()},
    }.get(wrap, {wrap: state, "epoch": 3, "args": argparse.Namespace(lr=1e-2), "best": np.float64(0.5)})
    torch.save(file, tmp_path / "x.pth")
    model = load_checkpoint(tmp_path / "x.pth")
    assert torch.equal(model.head.weight, state["head.weight"])


def test_safetensors_and_half_precision_become_float32(tmp_path):
    state = {k: v.to(torch.bfloat16) for k, v in tiny_bird().items()}
    save_file(state, tmp_path / "x.safetensors")
    weight = load_checkpoint(tmp_path / "x.safetensors").head.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, state["head.weight"].float())


def test_as_many_names_as_rows_travel_with_a_file():
    with pytest.raises(UserError, match="names 1 classes and has 5 logit rows"):
        load_checkpoint({"model": tiny_bird(5), "classes": ["a"]})


def test_class_names_travel_with_the_file():
    table = load_checkpoint({"model": tiny_bird(2), "classes": ["cat", "dog"]}).class_table
    assert table.names == ("cat", "dog")
    assert load_checkpoint(tiny_bird(2)).class_table is None


def swapped(stack=False, alpha=8.0):
    """A timm model with adapters on FFN and qkv that do something, at a scale that is not loralib's."""
    model = tiny_timm()
    inject(model, [*FFN, "blocks.0.attn.qkv"], 2, alpha)
    for _ in range(2 if stack else 1):
        with torch.no_grad():
            for layer in adapters(model).values():
                layer.lora_B.normal_(std=0.2)
        if stack:
            fresh(model, LoraConfig(), 5, stack=True)
    return model


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("merge", [False, True])
@torch.no_grad()
def test_exported_file_loads_to_the_same_outputs(stack, merge, images, tmp_path):
    model = swapped(stack)
    export_published(model, tmp_path / "x.bin", merge=merge)
    state = torch.load(tmp_path / "x.bin", weights_only=True)
    assert any("lora" in k for k in state) != merge and not any("past" in k for k in state)
    same(load_checkpoint(tmp_path / "x.bin")(images), model(images))
    same(bird_logits(state, images), model(images))


def test_own_state_dict_with_stacked_adapters_loads(images):
    model = swapped(stack=True, alpha=1.0)
    same(load_checkpoint(model.state_dict())(images), model(images))


def test_export_says_what_the_layout_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="reg_token"):
        export_published(tiny_timm(reg_tokens=2), tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_merged_file_counts_its_update_once(images, tmp_path):
    live = load_checkpoint(tiny_bird(rank=2))
    state = tiny_bird(rank=2)
    for name, layer in adapters(live).items():
        block, leaf = name.split(".")[1], name.rpartition(".")[2]
        state[f"transformer.encoder.layer.{block}.ffn.{leaf}.weight"] += layer.delta()
    model = load_checkpoint(state, lora_merged=True)
    same(model(images), live(images))
    remove(model)
    remove(live)
    same(model(images), live(images))


def test_dropout_is_where_the_published_model_has_it():
    model = load_checkpoint(tiny_bird(), dropout=0.1)
    assert model.pos_drop.p == model.blocks[0].mlp.drop1.p == model.blocks[0].mlp.drop2.p == 0.1
    assert model.blocks[0].attn.proj_drop.p == 0


@pytest.mark.parametrize(
    "kind", ["cut", "text", "empty", "code", "folder", "absent", "list", "cut_safetensors", "cut_npz"]
)
def test_unreadable_files_are_one_line_errors(kind, tmp_path):
    path = tmp_path / {"cut_safetensors": "x.safetensors", "cut_npz": "x.npz"}.get(kind, "x.pth")
    if kind == "cut":
        torch.save(tiny_bird(), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "cut_safetensors":
        save_file(tiny_bird(), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "cut_npz":
        np.savez(path, **google_arrays(tiny_timm()))
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.touch()
    elif kind == "code":
        torch.save(tiny_timm(), path)  # a whole model needs its class to be run
    elif kind == "folder":
        path.mkdir()
    elif kind == "list":
        torch.save([1, 2], path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(path) in one_line(error)


def test_a_packed_file_that_unfolds_to_far_more_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(10**6))
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda self: [types.SimpleNamespace(file_size=2**33)])
    with pytest.raises(UserError, match="unfolds to 8.0 GiB"):
        read_weights(tmp_path / "w.npz")


def test_arrays_of_another_byte_order_are_read():
    assert read_weights({"a": np.arange(3, dtype=">f4")}).state["a"].tolist() == [0, 1, 2]


def test_another_architecture_is_named_with_what_is_known():
    with pytest.raises(UserError) as error:
        load_checkpoint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).state_dict())
    assert "0.weight" in one_line(error) and "Face Transformer" in str(error.value)
    with pytest.raises(UserError, match="no weights"):
        load_checkpoint({"epoch": 3})


@pytest.mark.parametrize("family", ["bird", "timm", "torchvision", "face"])
@pytest.mark.parametrize("defect", ["missing", "unknown", "shape", "whole"])
def test_keys_that_do_not_fit_are_named(family, defect):
    state = {
        "bird": lambda: tiny_bird(),
        "timm": lambda: tiny_timm().state_dict(),
        "torchvision": lambda: TorchvisionViT(32, 16, 2, 2, 128, 256, num_classes=5).state_dict(),
        "face": lambda: FaceTransformer(5, depth=1, image_size=16, width=64, num_heads=1, hidden=32).state_dict(),
    }[family]()
    victim = next(k for k in state if k.endswith(("fc2.bias", "mlp.3.bias", "net.3.bias", "ffn.fc2.bias")))
    if defect == "missing":
        del state[victim]
    elif defect == "unknown":
        state["surprise.weight"] = torch.zeros(2)
    else:
        state[victim] = torch.zeros(2) if defect == "shape" else state[victim].int()
    with pytest.raises(UserError) as error:
        load_checkpoint(state)
    assert ("surprise" if defect == "unknown" else "bias") in one_line(error)


@pytest.mark.parametrize("change", ["no_b", "bad_shape"])
def test_damaged_adapters_are_named(change):
    state = tiny_bird(rank=2)
    name = "transformer.encoder.layer.1.ffn.fc1."
    if change == "no_b":
        del state[f"{name}lora_B"]
    else:
        state[f"{name}lora_A"] = torch.zeros(2, 100)
    with pytest.raises(UserError, match=r"adapter of `blocks\.1\.mlp\.fc1`"):
        load_checkpoint(state)


def test_weights_tell_what_stood_beside_them():
    weights = read_weights({"model": tiny_bird(), "epoch": 4})
    assert weights.beside == {"epoch": 4} and "head.bias" in weights.state
    assert isinstance(load_checkpoint(tiny_bird(rank=2)).blocks[0].mlp.fc1, LoRALinear)


class Runs:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".bin", ".npz", ".safetensors"])
def test_a_hostile_file_is_one_line_and_runs_nothing(ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x{ending}"
    if ending == ".npz":
        np.savez(path, a=np.array([Runs()], dtype=object))
    elif ending == ".pth":
        torch.save({"model": {"a": torch.zeros(1)}, "args": Runs()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {"a": Runs()}}))
    with pytest.raises(UserError, match="cannot be read safely") as error:
        read_weights(path)
    assert str(path) in one_line(error) and not (tmp_path / "PWNED").exists()
    if ending in (".pth", ".pkl"):
        assert ".system" in str(error.value)  # what it asked for


def test_a_wrapper_that_holds_itself_ends(tmp_path):
    data = {"epoch": 1}
    data["model"] = data
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(UserError, match="no weights"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".npz"])
def test_arrays_in_files_keep_their_shape_and_can_be_written_to(ending, tmp_path):
    path, state = tmp_path / f"x{ending}", {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(2.0)}
    if ending == ".npz":
        np.savez(path, **state)
    else:
        (torch.save if ending == ".pth" else lambda x, p: p.write_bytes(pickle.dumps(x)))({"state_dict": state}, path)
    found = read_weights(path).state
    assert found["a"].shape == (3, 2) and found["b"].shape == ()
    found["a"] += 1
    assert torch.equal(found["a"] - 1, torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T)


def test_arrays_are_taken_for_tensors():
    state = tiny_bird(rank=2)
    model = load_checkpoint({k: v.numpy() for k, v in state.items()})
    assert torch.equal(model.head.weight, state["head.weight"])
