import numpy as np
import pytest
import torch
from ks_classification import load_checkpoint
from ks_classification.checkpoints.layouts import bird_to_timm, num_heads, resize_positions, timm_to_bird
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from vit_files import google_arrays, one_line, randomize, same, tiny_bird, tiny_timm

from common.errors import UserError
from common.lora import inject


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


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


def test_image_size_resizes_positions_and_keeps_corners(images):
    model = load_checkpoint(tiny_bird(), image_size=64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    grid = torch.arange(1 + 9.0).reshape(1, 10, 1)
    larger = resize_positions(grid, 1, 5)[0, 1:, 0].reshape(5, 5)
    assert larger[0, 0] == 1 and larger[-1, -1] == 9 and larger[2, 2] == 5 and larger[0, 1] == 1.5
    assert torch.equal(resize_positions(grid, 1, 3), grid)


def test_number_of_heads():
    assert [num_heads(w, None) for w in (192, 384, 768, 1024, 1280)] == [3, 6, 12, 16, 16]
    assert num_heads(96, 3) == 3
    with pytest.raises(UserError, match="num_heads=N"):
        num_heads(96, None)
    with pytest.raises(UserError, match="does not divide"):
        num_heads(96, 5)


def test_missing_block_is_noticed():
    state = {k.replace("layer.1.", "layer.2."): v for k, v in tiny_bird().items()}
    with pytest.raises(UserError, match=r"blocks \[0, 2\]"):
        load_checkpoint(state)


def test_variants_with_other_arithmetic_are_refused():
    import timm

    for name, word in (("deit_tiny_distilled_patch16_224", "distilled"), ("vit_xsmall_patch16_clip_224", "norm_pre")):
        state = timm.create_model(name, depth=1, num_classes=2).state_dict()
        with pytest.raises(UserError, match=word) as error:
            load_checkpoint(state)
        one_line(error)
