"""`hf:` models: folders are read as they are, names reach the network only where that is allowed, nothing of theirs runs."""

import json

import pytest
import torch
from transformers import ViTConfig

from common import hub
from common.errors import UserError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16,
         "patch_size": 8}  # fmt: skip
KIND = "ViTForImageClassification"


@pytest.fixture
def folder(tmp_path):
    model = hub.build(KIND, ViTConfig(**SIZES, num_labels=3))
    hub.save(model, tmp_path / "vit", ["a", "b", "c"], {"preprocessor_config.json": b"{}"})
    return tmp_path / "vit"


def test_a_folder_comes_back_with_its_names_and_what_lies_beside_it(folder):
    place = hub.folder_of(f"hf:{folder}", fetch=False)
    config = hub.read_config(place)
    model = hub.load(KIND, place, config)
    assert hub.row_names(config) == ["a", "b", "c"] and hub.beside(place) == {"preprocessor_config.json": b"{}"}
    again = hub.build(KIND, hub.make_config(hub.plain_config(config), "a record"))
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model(images).logits, again(images).logits)


def test_numbered_rows_have_no_names():
    assert hub.row_names(ViTConfig(**SIZES, num_labels=3)) == []


def test_a_name_is_not_downloaded_unasked(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **rest: asked.append(rest) or 1 / 0)
    with pytest.raises(UserError, match="give --model hf:some/model again to allow it"):
        hub.folder_of("hf:some/model", fetch=False)
    assert [rest["local_files_only"] for rest in asked] == [True]


@pytest.mark.parametrize("text", ["hf:", "hf:../up", "hf:a/b/c", "hf:https://x.y/z"])
def test_what_is_no_folder_and_no_name_is_refused(text):
    with pytest.raises(UserError, match="there is no folder"):
        hub.folder_of(text)


def test_a_folder_without_a_model_or_without_weights_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds no transformers model"):
        hub.folder_of(f"hf:{tmp_path}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="a config but no weights"):
        hub.load(KIND, folder, hub.read_config(folder))


def test_weights_that_do_not_fit_are_refused_and_not_replaced(folder):
    config = hub.read_config(folder)
    config.intermediate_size = 32
    with pytest.raises(UserError, match="in another shape"):
        hub.load(KIND, folder, config)
    config = hub.read_config(folder)
    config.num_hidden_layers = 2
    with pytest.raises(UserError, match="lacks"):
        hub.load(KIND, folder, config)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "no_such_model"},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:someone/model"}},
        {"architecture": "local-dir:/etc"},
        {"model_args": {"checkpoint_path": "x"}},
        {"hidden_size": "wide"},
    ],
)
def test_a_config_that_is_strange_is_one_line(folder, change):
    table = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(UserError) as error:
        hub.build(KIND, hub.read_config(folder))
    assert "\n" not in str(error.value)


def test_an_older_config_names_its_backbone_without_a_look_on_the_hub(monkeypatch):
    from transformers import backbone_utils

    monkeypatch.setattr(backbone_utils, "hf_api", None)
    table = {"model_type": "deformable_detr", "backbone": "resnet50", "use_timm_backbone": True}
    made = hub.make_config(table | {"backbone_kwargs": {"in_chans": 3, "out_indices": [3, 4]}}, "it")
    assert (made.backbone_config.backbone, tuple(made.backbone_config.out_indices)) == ("resnet50", (3, 4))
    with pytest.raises(UserError, match="would be downloaded"):
        hub.make_config(table | {"use_timm_backbone": False}, "it")


def test_code_of_a_repository_is_not_run(folder):
    table = json.loads((folder / "config.json").read_text())
    table["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    hub.load(KIND, folder, hub.read_config(folder))
