import copy

import pytest
import torch
import torch.nn.functional as F
from ks_classification import export_published, load_checkpoint
from ks_classification.models.face import FaceTransformer

from common.adapters import remove
from common.errors import UserError
from common.lora import adapters, inject
from common.sparsity import groups

FFN = [f"transformer.layers.{i}.1.fn.fn.net.{j}" for i in range(2) for j in (0, 3)]
QKV = [f"transformer.layers.{i}.0.fn.fn.to_qkv" for i in range(2)]


def tiny(head="cosface", overlap=0, **options):
    torch.manual_seed(0)
    sizes = {"patch_size": 12, "image_size": 24} if overlap else {"patch_size": 8, "image_size": 24}
    return FaceTransformer(
        5, head, depth=2, width=64, num_heads=2, hidden=96, overlap=overlap, **sizes, **options
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def by_hand(state, images, heads=2):
    """The published model written out as equations, patches cut one by one."""
    cut = [images[:, :, r : r + 8, c : c + 8].permute(0, 2, 3, 1).flatten(1) for r in (0, 8, 16) for c in (0, 8, 16)]
    x = torch.stack(cut, 1) @ state["patch_to_embedding.weight"].T + state["patch_to_embedding.bias"]
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), x], 1) + state["pos_embedding"]
    for i in range(2):
        a, f = f"transformer.layers.{i}.0.fn.", f"transformer.layers.{i}.1.fn."
        y = F.layer_norm(x, (64,), state[f"{a}norm.weight"], state[f"{a}norm.bias"])
        q, k, v = (
            t.unflatten(-1, (heads, 64)).transpose(1, 2) for t in (y @ state[f"{a}fn.to_qkv.weight"].T).chunk(3, -1)
        )
        y = ((q @ k.transpose(-1, -2) * 64**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, state[f"{a}fn.to_out.0.weight"], state[f"{a}fn.to_out.0.bias"])
        y = F.layer_norm(x, (64,), state[f"{f}norm.weight"], state[f"{f}norm.bias"])
        y = F.gelu(F.linear(y, state[f"{f}fn.net.0.weight"], state[f"{f}fn.net.0.bias"]))
        x = x + F.linear(y, state[f"{f}fn.net.3.weight"], state[f"{f}fn.net.3.bias"])
    return F.layer_norm(x[:, 0], (64,), state["mlp_head.0.weight"], state["mlp_head.0.bias"])


@torch.no_grad()
def test_model_computes_its_equations(images):
    model = tiny()
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    torch.testing.assert_close(model(images), by_hand(model.state_dict(), images), rtol=1e-4, atol=1e-4)


def test_attention_is_scaled_by_the_width_not_by_the_head():
    model = FaceTransformer(2, depth=1, width=128, num_heads=2, hidden=8, image_size=16)
    assert model.transformer.layers[0][0].fn.fn.scale == 128**-0.5


def test_labels_give_logits_with_margin_and_the_head_gives_them_without(images):
    model, labels = tiny(), torch.tensor([0, 4, 2])
    with torch.no_grad():
        embedding = model(images)
        plain, margin = model.head(embedding), model(images, labels)
    torch.testing.assert_close(plain - margin, 64 * 0.35 * F.one_hot(labels, 5), rtol=1e-3, atol=1e-3)


def test_overlapping_patches_reach_into_their_neighbours():
    model = tiny(overlap=2)
    ramp = torch.arange(3 * 24 * 24.0).reshape(1, 3, 24, 24)
    patches = model.patches(ramp)
    assert patches.shape == (1, 9, 432)
    middle = patches[0, 4].reshape(3, 12, 12)  # channel first
    assert torch.equal(middle, ramp[0, :, 6:18, 6:18])
    corner = patches[0, 0].reshape(3, 12, 12)
    assert (corner[:, :2] == 0).all() and torch.equal(corner[:, 2:, 2:], ramp[0, :, :10, :10])


@pytest.mark.parametrize(("head", "overlap"), [("cosface", 0), ("softmax", 0), ("cosface", 2)])
@torch.no_grad()
def test_state_dict_alone_gives_the_model_back(head, overlap, images):
    model, labels = tiny(head, overlap), torch.tensor([1, 2, 3])
    loaded = load_checkpoint(model.state_dict())
    assert type(loaded.head) is type(model.head) and loaded.overlap == overlap
    torch.testing.assert_close(loaded(images, labels), model(images, labels))


@pytest.mark.parametrize("head", ["arcface", "sface"])
def test_a_margin_head_is_named_because_keys_do_not_tell_it(head):
    model = tiny(head)
    assert type(load_checkpoint(model.state_dict()).head).__name__ == "CosFace"
    assert type(load_checkpoint(model.state_dict(), head=head).head) is type(model.head)


def test_a_file_without_a_head_gives_embeddings(images):
    state = {k: v for k, v in tiny().state_dict().items() if not k.startswith("loss.")}
    model = load_checkpoint(state)
    assert model.head is None and model(images).shape == (3, 64)


@pytest.mark.parametrize("names", [FFN, QKV])
@torch.no_grad()
def test_loralib_keys_become_live_adapters(names, images):
    """`to_qkv` holds three adapters in one, A [3r, in] and B [3 out, r]."""
    model = tiny()
    inject(model, names, 4, 1.0)
    for layer in adapters(model).values():
        layer.lora_B.normal_()
    published = {k: v for k, v in model.state_dict().items() if "past" not in k}
    loaded = load_checkpoint(published)
    assert {layer.rank for layer in adapters(loaded).values()} == {4}
    torch.testing.assert_close(loaded(images), model(images))
    plain = {k: v for k, v in published.items() if "lora" not in k}
    for name in names:
        a, b = published[f"{name}.lora_A"], published[f"{name}.lora_B"]
        parts = zip(a.chunk(len(a) // 4), b.chunk(len(a) // 4), strict=True)
        plain[f"{name}.weight"] = plain[f"{name}.weight"] + torch.cat([q @ p for p, q in parts]) / 4
    torch.testing.assert_close(load_checkpoint(plain)(images), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_published_task_file_is_not_merged_twice(images):
    """GS-LoRA's files hold merged weights and the factors; adding them again gives another model."""
    model = tiny()
    inject(model, FFN, 4, 1.0)
    base = copy.deepcopy(model)
    for layer in adapters(model).values():
        layer.lora_B.normal_()
    state = {k: v.clone() for k, v in model.state_dict().items() if "past" not in k}
    for name, layer in adapters(model).items():
        state[f"{name}.weight"] += layer.delta()
    right, wrong = load_checkpoint(state, lora_merged=True), load_checkpoint(state)
    torch.testing.assert_close(right(images), model(images), rtol=1e-4, atol=1e-4)
    assert (wrong(images) - model(images)).abs().max() > 0.1
    remove(right)
    torch.testing.assert_close(right(images), base(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge", [False, True])
@torch.no_grad()
def test_export_keeps_the_published_keys(merge, images, tmp_path):
    model = tiny()
    keys = set(model.state_dict())
    inject(model, FFN, 4, 16.0)
    for layer in adapters(model).values():
        layer.lora_B.normal_()
    export_published(model, tmp_path / "x.pth", merge=merge)
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {k for k in state if "lora" not in k} == keys and any("lora" in k for k in state) != merge
    torch.testing.assert_close(load_checkpoint(state)(images), model(images), rtol=1e-4, atol=1e-4)


def test_published_size():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in FaceTransformer(100, depth=d).parameters()) for d in (6, 12, 18)]
    assert sizes == [19_157_504, 38_062_592, 56_967_680]


def test_adapters_fall_into_one_group_per_block():
    model = tiny()
    inject(model, FFN, 4)
    assert [len(g) for g in groups(model).values()] == [4, 4]


def test_gradients_reach_everything_in_training(images):
    model = tiny().train()
    model.head.loss(model(images), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_image_size_must_fit_the_patches():
    with pytest.raises(UserError, match="multiple of the patch stride 8"):
        FaceTransformer(image_size=30)
    with pytest.raises(UserError, match="mlp_head|pos_embedding"):
        load_checkpoint({k: v for k, v in tiny().state_dict().items() if k != "pos_embedding"})
