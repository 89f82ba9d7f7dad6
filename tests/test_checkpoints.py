import argparse
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ks_classification import export_published, load_checkpoint
from ks_classification.face import FaceTransformer
from ks_classification.vit_layouts import bird_to_timm, num_heads, resize_positions, timm_to_bird
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from common.errors import UserError
from common.lora import LoraConfig, LoRALinear, adapters, disabled, fresh, inject
from common.weights import read_weights

FFN = [f"blocks.{i}.mlp.fc{j}" for i in range(2) for j in (1, 2)]


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def tiny_timm(rows=7, **options):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=rows, **options
    )
    randomize(model)
    return model.eval()


def randomize(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.2
        p.data = torch.randn(p.shape, generator=generator) * scale + (0.8 if p.dim() == 1 else 0)


def tiny_bird(rows=7, rank=0, attention_rank=0):
    """A published state dict of two blocks, filled at random."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)

    state = {
        "transformer.embeddings.position_embeddings": draw(1, 5, 128),
        "transformer.embeddings.cls_token": draw(1, 1, 128),
        "transformer.embeddings.patch_embeddings.weight": draw(128, 3, 16, 16) / 16,
        "transformer.embeddings.patch_embeddings.bias": draw(128),
        "transformer.encoder.encoder_norm.weight": 1 + draw(128),
        "transformer.encoder.encoder_norm.bias": draw(128),
        "head.weight": draw(rows, 128),
        "head.bias": draw(rows),
    }
    shapes = {f"attn.{n}": (128, 128) for n in ("query", "key", "value", "out")}
    shapes |= {"ffn.fc1": (512, 128), "ffn.fc2": (128, 512)}
    for i in range(2):
        root = f"transformer.encoder.layer.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            state |= {f"{root}{norm}.weight": 1 + draw(128), f"{root}{norm}.bias": draw(128)}
        for name, (out, inp) in shapes.items():
            state |= {f"{root}{name}.weight": draw(out, inp), f"{root}{name}.bias": draw(out)}
            r = rank if "ffn" in name else attention_rank
            if r:
                state |= {f"{root}{name}.lora_A": draw(r, inp), f"{root}{name}.lora_B": 4 * draw(out, r)}
    return state


def bird_logits(state, images):
    """The published model written out as equations, two heads of 64."""

    def linear(x, name):
        y = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        if f"{name}.lora_A" in state:
            a, b = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
            y = y + (x @ a.T @ b.T) / a.shape[0]
        return y

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    front = "transformer.embeddings."
    x = F.conv2d(images, state[f"{front}patch_embeddings.weight"], state[f"{front}patch_embeddings.bias"], 16)
    x = torch.cat([state[f"{front}cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{front}position_embeddings"]
    for i in range(2):
        root = f"transformer.encoder.layer.{i}."
        y = norm(x, f"{root}attention_norm")
        q, k, v = (
            linear(y, f"{root}attn.{n}").unflatten(-1, (2, 64)).transpose(1, 2) for n in ("query", "key", "value")
        )
        y = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).flatten(2), f"{root}attn.out")
        y = F.gelu(linear(norm(x, f"{root}ffn_norm"), f"{root}ffn.fc1"))
        x = x + linear(y, f"{root}ffn.fc2")
    return linear(norm(x, "transformer.encoder.encoder_norm")[:, 0], "head")


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
    with disabled(model):
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


def test_class_names_travel_with_the_file():
    table = load_checkpoint({"model": tiny_bird(2), "classes": ["cat", "dog"]}).class_table
    assert table.names == ("cat", "dog")
    assert load_checkpoint(tiny_bird(2)).class_table is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 1e-1, "qkv_bias": False},
        {"global_pool": "avg"},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 4},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"mlp_ratio": 3.0, "qk_norm": True},
    ],
)
@torch.no_grad()
def test_timm_state_dict_gives_the_same_model(options, images):
    model = tiny_timm(**options)
    same(load_checkpoint(model.state_dict())(images), model(images))


def test_timm_state_dict_without_a_head_gives_features(images):
    state = {k: v for k, v in tiny_timm().state_dict().items() if not k.startswith("head")}
    assert load_checkpoint(state)(images).shape == (2, 128)


@pytest.mark.parametrize("old_names", [False, True])
@torch.no_grad()
def test_torchvision_state_dict_gives_the_same_model(old_names, images):
    model = TorchvisionViT(32, 16, 2, 2, 128, 256, num_classes=5).eval()
    randomize(model)
    state = model.state_dict()
    if old_names:
        state = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in state.items()}
    loaded = load_checkpoint(state)
    assert isinstance(loaded, TorchvisionViT)
    same(loaded(images), model(images))


@torch.no_grad()
def test_torchvision_state_dict_with_adapters(images):
    model = TorchvisionViT(32, 16, 2, 2, 128, 256, num_classes=5).eval()
    randomize(model)
    inject(model, [f"encoder.layers.encoder_layer_{i}.mlp.{j}" for i in range(2) for j in (0, 3)], 4)
    randomize(model)
    same(load_checkpoint(model.state_dict())(images), model(images))


def google_arrays(model):
    """The .npz layout of a timm model: kernels [in, out], attention split by heads, convolution HWIO."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for a, b in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays |= {f"{theirs}{b}/scale": state[f"{ours}{a}.weight"], f"{theirs}{b}/bias": state[f"{ours}{a}.bias"]}
        for a, b in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{theirs}MlpBlock_3/{b}/kernel"] = state[f"{ours}mlp.{a}.weight"].T
            arrays[f"{theirs}MlpBlock_3/{b}/bias"] = state[f"{ours}mlp.{a}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(128 * j, 128 * (j + 1))
            arrays[f"{attention}{name}/kernel"] = state[f"{ours}attn.qkv.weight"][rows].T.reshape(128, 2, 64)
            arrays[f"{attention}{name}/bias"] = state[f"{ours}attn.qkv.bias"][rows].reshape(2, 64)
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(2, 64, 128)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
    return arrays


@torch.no_grad()
def test_google_npz_gives_the_same_model(images, tmp_path):
    model = tiny_timm()
    np.savez(tmp_path / "x.npz", **google_arrays(model))
    same(load_checkpoint(tmp_path / "x.npz")(images), model(images))
    np.savez(tmp_path / "cut.npz", **{k: v for k, v in google_arrays(model).items() if "key" not in k})
    with pytest.raises(UserError, match="only query, value"):
        load_checkpoint(tmp_path / "cut.npz")


def test_published_names_round_trip_bit_for_bit():
    state = tiny_bird(rank=2, attention_rank=3)
    back = timm_to_bird(bird_to_timm(state))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


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
    with disabled(model), disabled(live):
        same(model(images), live(images))


def test_image_size_resizes_positions_and_keeps_corners(images):
    model = load_checkpoint(tiny_bird(), image_size=64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    grid = torch.arange(1 + 9.0).reshape(1, 10, 1)
    larger = resize_positions(grid, 1, 5)[0, 1:, 0].reshape(5, 5)
    assert larger[0, 0] == 1 and larger[-1, -1] == 9 and larger[2, 2] == 5 and larger[0, 1] == 1.5
    assert torch.equal(resize_positions(grid, 1, 3), grid)


def test_dropout_is_where_the_published_model_has_it():
    model = load_checkpoint(tiny_bird(), dropout=0.1)
    assert model.pos_drop.p == model.blocks[0].mlp.drop1.p == model.blocks[0].mlp.drop2.p == 0.1
    assert model.blocks[0].attn.proj_drop.p == 0


def test_number_of_heads():
    assert [num_heads(w, None) for w in (192, 384, 768, 1024, 1280)] == [3, 6, 12, 16, 16]
    assert num_heads(96, 3) == 3
    with pytest.raises(UserError, match="num_heads=N"):
        num_heads(96, None)
    with pytest.raises(UserError, match="does not divide"):
        num_heads(96, 5)


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


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


def test_another_architecture_is_named_with_what_is_known():
    with pytest.raises(UserError) as error:
        load_checkpoint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).state_dict())
    assert "0.weight" in one_line(error) and "Face Transformer" in str(error.value)
    with pytest.raises(UserError, match="no weights"):
        load_checkpoint({"epoch": 3})


@pytest.mark.parametrize("family", ["bird", "timm", "torchvision", "face"])
@pytest.mark.parametrize("defect", ["missing", "unknown", "shape"])
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
        state[victim] = torch.zeros(2)
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


def test_missing_block_is_noticed():
    state = {k.replace("layer.1.", "layer.2."): v for k, v in tiny_bird().items()}
    with pytest.raises(UserError, match=r"blocks \[0, 2\]"):
        load_checkpoint(state)


def test_weights_tell_what_stood_beside_them():
    weights = read_weights({"model": tiny_bird(), "epoch": 4})
    assert weights.beside == {"epoch": 4} and "head.bias" in weights.state
    assert isinstance(load_checkpoint(tiny_bird(rank=2)).blocks[0].mlp.fc1, LoRALinear)


def test_variants_with_other_arithmetic_are_refused():
    import timm

    for name, word in (("deit_tiny_distilled_patch16_224", "distilled"), ("vit_xsmall_patch16_clip_224", "norm_pre")):
        state = timm.create_model(name, depth=1, num_classes=2).state_dict()
        with pytest.raises(UserError, match=word) as error:
            load_checkpoint(state)
        one_line(error)
