"""Adapters on disk: saved, loaded, undone and merged without a trace; readable by `peft`."""

import copy
import json
from functools import partial

import pytest
import torch
from test_lora import same, shake
from torch import nn

from common import adapters, lora
from common.errors import UserError
from common.layers import Linear
from common.lora import LoraConfig, inject

HEAD = {"head.weight": [3, 4], "head.bias": [3, 4]}
NAMES = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def vit():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()


def trained(names=NAMES, stacked=False, alpha=3.0):
    """An adapted model as a run leaves it: an update in every layer, new values in the new rows."""
    model = vit()
    inject(model, names, 2, alpha)
    shake(model)
    if stacked:
        lora.fresh(model, LoraConfig(lora_rank=2), 1, stack=True)
        shake(model)
    with torch.no_grad():
        model.head.weight[3:] += 1
        model.head.bias[3:] -= 1
    return model


@pytest.fixture(params=[False, True], ids=["one adapter", "stacked"])
def saved(request, tmp_path):
    model = trained(stacked=request.param)
    adapters.save(model, tmp_path, HEAD, {"classes": list("abcde")})
    return model, tmp_path


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_saved_adapter_answers_the_same_on_the_base_model(saved):
    model, folder = saved
    base = vit()
    loaded = adapters.load(base, folder)
    same(base(IMAGES), model(IMAGES))
    assert loaded.info["classes"] == list("abcde")


def test_saving_a_loaded_adapter_writes_the_same_bytes(saved, tmp_path):
    _, folder = saved
    base = vit()
    info = adapters.load(base, folder).info
    adapters.save(base, tmp_path / "again", info["rows"], {"classes": info["classes"]})
    for file in (adapters.WEIGHTS, adapters.CONFIG, adapters.SWAP):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_undo_is_exact(saved):
    _, folder = saved
    base = vit()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    kinds = {n: type(m) for n, m in base.named_modules()}
    expected = base(IMAGES)
    adapters.undo(base, adapters.load(base, folder))
    assert {n: type(m) for n, m in base.named_modules()} == kinds
    assert base.state_dict().keys() == before.keys()
    for name, value in base.state_dict().items():
        same(value, before[name])
    same(base(IMAGES), expected)


def test_merging_makes_a_plain_copy_and_leaves_the_model_alone(saved):
    model, _ = saved
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, model(IMAGES)
    plain = adapters.merge(model)
    assert not lora.adapters(plain) and plain.state_dict().keys() == vit().state_dict().keys()
    torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-5, atol=1e-5)
    same(model(IMAGES), expected)
    for name, value in model.state_dict().items():
        same(value, before[name])


class Encoder(nn.Module):
    """Torch's own attention, a linear layer of our own kind, and torch's fused encoder layer."""

    def __init__(self):
        super().__init__()
        self.attn, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.attn(x, x, x, need_weights=False)[0]
        return self.head(self.layer(self.fc(x)))


def test_attention_modules_and_own_kinds_of_layers_come_back_as_they_were(tmp_path):
    base = Encoder().eval().requires_grad_(False)
    x = torch.randn(100, 3, 8)  # long enough for `Linear` to compute in its own way
    with torch.inference_mode():
        expected = base(x)
    model = copy.deepcopy(base)
    inject(model, ["attn", "fc", "layer.linear1", "layer.self_attn"], 2)
    adapters.save(shake(model), tmp_path, HEAD, {})
    loaded = adapters.load(base, tmp_path)
    same(base(x), model(x))
    torch.testing.assert_close(adapters.merge(model)(x), model(x))
    adapters.undo(base, loaded)
    assert type(base.fc) is Linear and type(base.attn) is nn.MultiheadAttention
    with torch.inference_mode():
        same(base(x), expected)


# ---- peft ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES, NAMES[2:4], [n for n in NAMES if "qkv" in n]], ids=["all", "ffn", "qkv"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("rows", [HEAD, {}], ids=["head rows", "frozen head"])
def test_peft_loads_it_and_gives_the_same_logits(names, stacked, rows, tmp_path):
    peft = pytest.importorskip("peft", reason="pip install peft")
    model = trained(names, stacked)
    if not rows:
        with torch.no_grad():
            model.head.load_state_dict(vit().head.state_dict())
    adapters.save(model, tmp_path, rows, {})
    theirs = peft.PeftModel.from_pretrained(vit(), tmp_path).eval()
    torch.testing.assert_close(theirs(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    again = peft.get_peft_model_state_dict(theirs)
    assert {k for k in again if "lora_" in k} == {f"{adapters.PREFIX}{n}.lora_{x}.weight" for n in names for x in "AB"}


def test_peft_reads_layers_of_different_ranks_and_scales(tmp_path):
    peft = pytest.importorskip("peft", reason="pip install peft")
    model = vit()
    inject(model, NAMES[2:], 2, alpha=5)
    inject(model, NAMES[:2], 3, alpha=1)
    adapters.save(shake(model), tmp_path, {}, {})
    theirs = peft.PeftModel.from_pretrained(vit(), tmp_path).eval()
    torch.testing.assert_close(theirs(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


# ---- what does not fit ---------------------------------------------------------------------------------------


def refused(model, folder, message):
    """Loading fails in one line and leaves the model as it was."""
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(UserError, match=message) as found:
        adapters.load(model, folder)
    assert "\n" not in str(found.value)
    assert [type(m) for m in model.modules()] == kinds
    for name, value in model.state_dict().items():
        same(value, before[name])


def test_an_adapter_for_another_model_is_refused(saved):
    from timm.models.vision_transformer import VisionTransformer

    _, folder = saved
    make = partial(VisionTransformer, img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    refused(make(depth=1), folder, "no layer `blocks.1.attn.qkv`")
    refused(make(embed_dim=32), folder, "where a layer does not")
    refused(make(num_classes=9), folder, r"head.weight is \(5, 16\), the model has \(9, 16\)")
    refused(make(), folder, "other base weights")


def test_an_adapter_on_top_of_another_is_refused(saved):
    model, folder = saved
    with pytest.raises(UserError, match="already"):
        adapters.load(model, folder)


def test_an_empty_folder_is_no_adapter(tmp_path):
    refused(vit(), tmp_path, "holds no adapter")


def test_damaged_and_torn_folders_are_refused(saved):
    model, folder = saved
    weights = folder / adapters.WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused(vit(), folder, "damaged")
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # written by a later phase than swap.json
    refused(vit(), folder, "do not belong together")
    weights.unlink()
    refused(vit(), folder, "cannot read")
    weights.write_bytes(data)
    (folder / adapters.SWAP).write_text('{"rows": ')
    refused(vit(), folder, "damaged")


def test_the_files_hold_plain_data(saved):
    _, folder = saved
    config = json.loads((folder / adapters.CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["modules_to_save"] == ["head"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [adapters.WEIGHTS, adapters.CONFIG, adapters.SWAP, adapters.CARD]
    )


# ---- whole models --------------------------------------------------------------------------------------------


def test_a_whole_model_comes_back_with_its_tied_weights(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    model["b"].weight = model["a"].weight
    model["norm"](torch.randn(5, 4))
    adapters.save_model(model, tmp_path, {"classes": ["x"]})
    other = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    assert adapters.load_model(other, tmp_path)["classes"] == ["x"]
    for name, value in other.state_dict().items():
        same(value, model.state_dict()[name])


def test_a_whole_model_that_does_not_fit_is_refused_in_one_line(tmp_path):
    adapters.save_model(nn.Linear(4, 4), tmp_path, {})
    with pytest.raises(UserError, match="does not fit") as found:
        adapters.load_model(nn.Linear(4, 5), tmp_path)
    assert "\n" not in str(found.value)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged"):
        adapters.load_model(nn.Linear(4, 4), tmp_path)
