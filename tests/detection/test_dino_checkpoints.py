"""Checkpoints: published names both ways, safe reading, inference of the config, new classes, clear errors."""

import argparse
import pickle

import ks_detection
import pytest
import torch
from ks_detection.checkpoints.dino import our_name, published_names
from ks_detection.checkpoints.export import export_official, published_state
from ks_detection.models.detectors import build_dino
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.model import Dino
from ks_detection.models.parts.detector import extend_classes
from tiny_dino import some_images, tiny_config, tiny_dino

from common.domain import ClassTable
from common.errors import UserError
from common.lora import adapters


def answers(model):
    with torch.no_grad():
        return model.eval()(some_images())["pred_logits"]


def test_names_go_there_and_back():
    for name in tiny_dino().state_dict():
        assert {our_name(published) for published in published_names(name, 3)} == {name}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, 626),
        ({"return_interm_indices": (0, 1, 2, 3), "num_feature_levels": 5}, 630),
        ({"backbone": "resnet101"}, 881),
        ({"backbone": "swin_L_384_22k"}, 716),
        ({"backbone": "swin_L_384_22k", "num_classes": 101, "dn_labelbook_size": 102, "lora_rank": 8}, 860),
        ({"backbone": "swin_T_224_1k"}, 548),
        ({"backbone": "swin_B_224_22k", "return_interm_indices": (0, 1, 2, 3), "num_feature_levels": 5}, 722),
    ],
)
def test_config_is_read_off_the_published_keys(changes, keys):
    from ks_detection.checkpoints.dino import infer_config, to_ours

    with torch.device("meta"):
        model = build_dino(DinoConfig(**changes))
    state = published_state(model, merge=False)
    assert len(state) == keys
    ours = {our_name(name): tensor for name, tensor in state.items()}
    assert infer_config(ours) == DinoConfig(**changes)
    assert set(to_ours({k: v for k, v in state.items() if "embed." not in k})) <= set(model.state_dict())


def test_official_file_with_a_namespace_ddp_prefix_and_averaged_weights(tmp_path):
    config = tiny_config(backbone="swin_T_224_1k", nheads=8)
    torch.manual_seed(0)
    model, average = Dino(config), Dino(config)
    content = {
        "model": {f"module.{name}": t for name, t in published_state(model).items()},
        "ema_model": published_state(average),
        "args": argparse.Namespace(lr=1e-4),
        "epoch": 11,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    loaded = ks_detection.load_checkpoint(tmp_path / "checkpoint.pth")
    arrays = {name: tensor.numpy() for name, tensor in published_state(model).items()}
    torch.testing.assert_close(answers(ks_detection.load_checkpoint(arrays)), answers(loaded), rtol=0, atol=0)
    assert loaded.config == config or loaded.config.num_select == 300  # what no shape shows has its default
    torch.testing.assert_close(answers(loaded), answers(model), rtol=0, atol=0)
    loaded = ks_detection.load_checkpoint(tmp_path / "checkpoint.pth", config, ema=True)
    torch.testing.assert_close(answers(loaded), answers(average), rtol=0, atol=0)


def test_swap_checkpoint_keeps_its_adapters_at_an_eighth_and_export_merges_them(tmp_path):
    model = tiny_dino(lora_rank=8)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    state = published_state(model, merge=False)
    assert "transformer.decoder.layers.0.linear2.lora_B" in state
    loaded = ks_detection.load_checkpoint({"model": state}, tiny_config())
    assert {layer.scale for layer in adapters(loaded).values()} == {1 / 8}
    torch.testing.assert_close(answers(loaded), answers(model), rtol=0, atol=0)
    table = ClassTable(("a", "b", "c", "d", "e"), (1, 2, 4, 8, 9))
    again = ks_detection.load_checkpoint(export_official(loaded, tmp_path / "merged.pth", table))
    assert not adapters(again) and again.class_table == table and again.config.lora_rank == 0
    torch.testing.assert_close(answers(again), answers(model), rtol=1e-4, atol=1e-4)


def test_export_stores_tied_copies_once(tmp_path):
    model = tiny_dino()
    size = export_official(model, tmp_path / "a.pth").stat().st_size
    assert size < 4 * sum(t.numel() for t in model.state_dict().values()) + 150_000
    stored = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert stored["class_embed.2.weight"].data_ptr() == stored["transformer.decoder.class_embed.0.weight"].data_ptr()


def test_new_classes_leave_old_answers_as_they_were():
    model = tiny_dino()
    before, labels = answers(model), model.label_enc.weight.clone()
    extend_classes(model, 8)
    torch.testing.assert_close(answers(model)[..., :5], before, rtol=1e-5, atol=1e-5)
    assert model.label_enc.weight.shape == (9, 32) and model.config.num_classes == 8
    torch.testing.assert_close(model.label_enc.weight[[0, 1, 2, 3, 4, 8]], labels, rtol=0, atol=0)
    assert model.transformer.selection.enc_out_class_embed.weight.shape[0] == 8
    with pytest.raises(UserError, match="8 classes already"):
        extend_classes(model, 3)


def test_errors_say_what_does_not_fit(tmp_path):
    state = published_state(Dino(tiny_config(backbone="swin_T_224_1k")))
    with pytest.raises(UserError, match="5 classes, the config wants 7"):
        ks_detection.load_checkpoint(state, tiny_config(backbone="swin_T_224_1k", num_classes=7))
    with pytest.raises(UserError, match="backbone swin_T_224_1k, the config wants resnet50"):
        ks_detection.load_checkpoint(state, tiny_config(backbone="resnet50"))
    short = {name: t for name, t in state.items() if "norm1" not in name}
    with pytest.raises(UserError, match="keys are missing"):
        ks_detection.load_checkpoint(short, tiny_config(backbone="swin_T_224_1k"))
    with pytest.raises(UserError, match="whole numbers, not weights"):
        ks_detection.load_checkpoint(
            {name: t.int() for name, t in state.items()}, tiny_config(backbone="swin_T_224_1k")
        )
    changed = state | {"class_embed.1.bias": state["class_embed.1.bias"] + 1}
    with pytest.raises(UserError, match="copies of"):
        ks_detection.load_checkpoint(changed)
    with pytest.raises(UserError, match="no such file"):
        ks_detection.load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read safely"):
        ks_detection.load_checkpoint(tmp_path / "bad.pth")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"model": {"x": torch.zeros(1)}, "args": Evil()}, tmp_path / "evil.pth", pickle_module=pickle)
    with pytest.raises(UserError, match="cannot be read safely"):
        ks_detection.load_checkpoint(tmp_path / "evil.pth")
