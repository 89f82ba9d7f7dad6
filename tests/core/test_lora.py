"""Adapters: a fresh one changes nothing, merged equals unmerged, every layout equals the dense update."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import Attention, ToyViT

from common import lora
from common.errors import UserError
from common.layers import Linear
from common.lora import LoraConfig, LoRALinear, adapters, inject, select


def same(a, b):
    """Bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def shake(model):
    """Gives every adapter an update that is not zero."""
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B.normal_(std=0.5)
    return model


# ---- nothing changes at first --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Linear, Linear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [5, 400])  # on both sides of the length from which `Linear` computes differently
def test_fresh_linear_adapter_changes_nothing(kind, bias, rows):
    base, x = kind(6, 4, bias=bias), torch.randn(rows, 6)
    expected = base(x)
    same(LoRALinear(base, rank=2)(x), expected)


def test_fresh_adapters_on_fused_qkv_change_nothing():
    model, x = ToyViT(5), torch.randn(2, 3, 8)
    expected = model(x)
    done = inject(model, ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1"], 2)
    assert done == list(adapters(model)) and adapters(model)["blocks.0.attn.qkv"].parts == 3
    same(model(x), expected)


def attention_calls():
    """(name, arguments of a call) for self-attention, cross-attention and masks."""
    x, y, z = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, 3:] = True
    blocked = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
    return {
        "self": ((x, x, x), {}),
        "cross": ((x, y, y), {}),
        "three": ((x, y, z), {}),
        "padding": ((x, y, y), {"key_padding_mask": hidden}),
        "causal": ((x, x, x), {"attn_mask": blocked, "is_causal": True}),
        "additive": ((x, y, z), {"attn_mask": torch.randn(3, 5), "key_padding_mask": hidden}),
        "per head": ((x, y, z), {"attn_mask": torch.randn(4, 3, 5)}),
        "unbatched": ((x[0], y[0], y[0]), {}),
    }


@pytest.mark.parametrize("call", attention_calls())
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_fresh_attention_adapter_changes_nothing(call, need_weights, batch_first):
    base = nn.MultiheadAttention(8, 2, batch_first=batch_first).requires_grad_(False)
    with torch.no_grad():
        base.in_proj_bias.normal_()
    inputs, masks = attention_calls()[call]
    if not batch_first and inputs[0].dim() == 3:
        swapped = {id(t): t.transpose(0, 1) for t in inputs}
        inputs = tuple(swapped[id(t)] for t in inputs)
    expected, attention = base(*inputs, need_weights=need_weights, **masks)
    model = nn.ModuleDict({"attn": base})
    inject(model, ["attn"], 2)
    found, weights = model["attn"](*inputs, need_weights=need_weights, **masks)
    same(found, expected)
    assert (weights is None) == (attention is None)
    if weights is not None:
        same(weights, attention)


@pytest.mark.parametrize("call", attention_calls())
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_attention_with_an_update_equals_dense_weights(call):
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    inject(model, ["attn"], 2, alpha=3)
    shake(model)
    inputs, masks = attention_calls()[call]
    layer = model["attn"]
    layer.stack()
    shake(model)
    fast, _ = layer(*inputs, need_weights=False, **masks)
    slow, _ = layer(*inputs, need_weights=True, **masks)
    torch.testing.assert_close(fast, slow)
    with lora.merged(model):
        torch.testing.assert_close(layer(*inputs, need_weights=False, **masks)[0], fast)


def test_adapters_are_not_passed_by_in_torchs_fused_encoder_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model, x = nn.ModuleDict({"layer": layer}), torch.randn(2, 3, 8)
    with torch.inference_mode():
        before = layer(x)
    inject(model, ["layer.linear1", "layer.self_attn"], 2)
    shake(model)
    with torch.inference_mode():
        fused = layer(x)
    torch.testing.assert_close(fused, layer(x).detach())
    assert not torch.allclose(fused, before)


# ---- equal to the dense update -------------------------------------------------------------------------------


def test_update_is_alpha_over_rank_times_b_a():
    layer = shake(nn.ModuleDict({"l": LoRALinear(nn.Linear(6, 4), rank=2, alpha=3)}))["l"]
    x = torch.randn(5, 6)
    weight = layer.weight + 3 / 2 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


def test_fused_qkv_updates_each_part_with_its_own_factors():
    layer = LoRALinear(nn.Linear(6, 12), rank=2, alpha=2, parts=3)
    assert layer.lora_A.shape == (6, 6) and layer.lora_B.shape == (12, 2)  # loralib's MergedLinear
    layer.lora_B.data.normal_()
    expected = torch.cat([layer.lora_B[4 * i : 4 * i + 4] @ layer.lora_A[2 * i : 2 * i + 2] for i in range(3)])
    torch.testing.assert_close(layer.delta(), expected)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + expected, layer.bias))


@pytest.mark.parametrize("stacked", [False, True])
def test_merged_equals_unmerged(stacked):
    model, x = ToyViT(5).eval(), torch.randn(2, 3, 8)
    inject(model, ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.mlp.fc2"], 2, alpha=5)
    shake(model)
    if stacked:
        for layer in adapters(model).values():
            layer.stack()
        shake(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x)
    with lora.merged(model):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        assert model.state_dict().keys() == state.keys()
    same(model(x), expected)
    for name, value in model.state_dict().items():
        same(value, state[name])


def test_stacking_changes_no_answer_and_starts_a_fresh_adapter():
    model, x = ToyViT(5), torch.randn(2, 3, 8)
    inject(model, ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"], 2)
    shake(model)
    expected = model(x)
    lora.fresh(model, LoraConfig(lora_rank=2), seed=1, stack=True)
    torch.testing.assert_close(model(x), expected)
    assert all(not layer.lora_B.any() for layer in adapters(model).values())
    assert [tuple(layer.past_A.shape) for layer in adapters(model).values()] == [(6, 16), (2, 32)]


def test_the_base_is_shared_and_frozen_and_only_factors_train():
    base = nn.Linear(6, 4)
    layer = LoRALinear(base, 2)
    assert layer.weight is base.weight and layer.bias is base.bias
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    layer(torch.randn(3, 6)).sum().backward()
    assert base.weight.grad is None and layer.lora_B.grad is not None


def test_state_dict_has_loralibs_keys_and_takes_a_loralib_file():
    model = nn.ModuleDict({"attn": Attention(8)})
    inject(model, ["attn.qkv", "attn.proj"], 2)
    expected = {"attn.qkv.weight", "attn.qkv.bias", "attn.qkv.lora_A", "attn.qkv.lora_B"}
    assert expected <= set(model.state_dict())
    theirs = {"attn.qkv.lora_A": torch.randn(6, 8), "attn.qkv.lora_B": torch.randn(24, 2)}
    assert not model.load_state_dict(theirs, strict=False).unexpected_keys
    same(model["attn"].qkv.lora_A.data, theirs["attn.qkv.lora_A"])


def test_fresh_adapters_are_a_function_of_the_seed_alone():
    first, second = ToyViT(5), ToyViT(5)
    for k, model in enumerate((first, second)):
        inject(model, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"], 2)
        torch.manual_seed(k)  # the global generator plays no part
        lora.fresh(model, LoraConfig(lora_rank=2), seed=3)
    a, b = adapters(first), adapters(second)
    for name in a:
        same(a[name].lora_A.data, b[name].lora_A.data)
    assert not torch.equal(a["blocks.0.mlp.fc1"].lora_A, a["blocks.1.mlp.fc1"].lora_A)


@pytest.mark.parametrize(("kind", "a"), [("loralib", 5), ("published", 50)])
def test_first_factor_is_kaiming_uniform(kind, a):
    model = nn.ModuleDict({"l": nn.Linear(1000, 200)})
    inject(model, ["l"], 100)
    lora.fresh(model, LoraConfig(lora_init=kind), seed=0)
    bound = (6 / ((1 + a) * 1000)) ** 0.5  # kaiming_uniform_ with slope sqrt(a)
    values = model["l"].lora_A
    assert values.abs().max() <= bound < 1.01 * values.abs().max()


def test_a_copied_model_is_independent():
    model, x = ToyViT(5), torch.randn(2, 3, 8)
    inject(model, ["blocks.0.mlp.fc1"], 2)
    twin, expected = copy.deepcopy(model), model(x)
    shake(twin)
    with torch.no_grad():
        twin.blocks[0].mlp.fc1.weight.zero_()
    same(model(x), expected)


# ---- what cannot be adapted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_must_fit_the_layer(rank):
    with pytest.raises(UserError, match=f"`--lora-rank` must be between 1 and 4 .* got {rank}"):
        LoRALinear(nn.Linear(6, 4), rank=rank)


def test_rank_must_fit_each_part_of_a_fused_layer():
    with pytest.raises(UserError, match="between 1 and 4"):
        LoRALinear(nn.Linear(100, 12), rank=5, parts=3)


def test_config_refuses_rank_zero():
    with pytest.raises(UserError, match="--lora-rank"):
        LoraConfig(lora_rank=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.norm1", "LayerNorm"),
        ("blocks.7.mlp.fc1", "no layer"),
        ("attn.out_proj", "name attn instead"),
        ("wide", "one size"),
    ],
)
def test_layers_that_cannot_carry_an_adapter_are_named(name, message):
    model = ToyViT(5)
    model.attn, model.wide = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4)
    with pytest.raises(UserError, match=message):
        inject(model, [name], 2)


def test_a_layer_is_adapted_once():
    model = ToyViT(5)
    inject(model, ["blocks.0.mlp.fc1"], 2)
    with pytest.raises(UserError, match="already"):
        inject(model, ["blocks.0.mlp.fc1"], 2)


# ---- which layers --------------------------------------------------------------------------------------------

FFN = [f"blocks.{i}.mlp.fc{j}" for i in range(2) for j in (1, 2)]
ATTENTION = [f"blocks.{i}.attn.{part}" for i in range(2) for part in ("qkv", "proj")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FFN),
        ({"lora_position": "attention"}, ATTENTION),
        ({"lora_position": "all"}, sorted(FFN + ATTENTION, key=lambda n: (n[7], "mlp" in n, "proj" in n, n))),
        ({"lora_blocks": "1"}, FFN[2:]),
        ({"lora_blocks": "first1"}, FFN[:2]),
        ({"lora_blocks": "last1"}, FFN[2:]),
        ({"lora_blocks": "0-1"}, FFN),
        ({"lora_targets": "*.fc1"}, FFN[::2]),
        ({"lora_targets": "blocks.0.*qkv, head"}, ["blocks.0.attn.qkv", "head"]),
    ],
)
def test_layers_are_chosen_by_position_block_or_pattern(settings, expected):
    available = {"ffn": FFN, "attention": ATTENTION}
    assert select(available, LoraConfig(**settings), ToyViT(5)) == expected


def test_patterns_find_attention_modules_but_not_their_inner_layer():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "other": nn.ModuleDict({"out_proj": nn.Linear(2, 2)})})
    assert select({}, LoraConfig(lora_targets="*"), model) == ["attn", "other.out_proj"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_targets": "*.nothing"}, "matches no linear layer; the first are patch_embed"),
        ({"lora_position": "attention"}, "it has: ffn"),
        ({"lora_blocks": "2"}, "blocks 0-1"),
        ({"lora_blocks": "last3"}, "blocks 0-1"),
        ({"lora_blocks": "x"}, "must look like"),
    ],
)
def test_a_choice_that_fits_nothing_says_what_there_is(settings, message):
    with pytest.raises(UserError, match=message):
        select({"ffn": FFN}, LoraConfig(**settings), ToyViT(5))
