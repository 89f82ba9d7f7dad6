"""Folders of transformers that are damaged or say what no model has: each is one line, and nothing is written."""

import json
import shutil

import pytest
import tiny_hub
import tiny_hub_detectors
from PIL import Image
from refusals import SESSIONS, ids_of, offline, refused  # noqa: F401
from safetensors.torch import load_file, save_file

from common import commands, hub
from common.errors import UserError

DOMAINS = {"segmentation": "segformer", "detection": "rt_detr_v2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Domain -> a folder of a small model, and a picture."""
    root = tmp_path_factory.mktemp("hub")
    Image.effect_noise((48, 40), 90).save(root / "a.png")
    sizes = tiny_hub.SEGMENTERS["segformer"]
    tiny_hub.save("segformer", "SegformerForSemanticSegmentation", sizes, list("abc"), root / "segmentation")
    settings = {"preprocessor_config.json": b'{"size": {"height": 64, "width": 64}}'}
    hub.save(tiny_hub_detectors.tiny_hub("rt_detr_v2", 3), root / "detection", list("abc"), settings)
    return root


def predicted(capsys, folders, tmp_path, name, change):
    folder = shutil.copytree(folders / name, tmp_path / "model")
    change(folder)
    words = [f"hf:{folder}", str(folders / "a.png"), "--device", "cpu"]
    return refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "predict", words))


PROCESSORS = ["5", "[" * 100_000, '{"size": "x"}', '{"size": {"height": -1, "width": 0}}', '{"size": {"height": 1e400, "width": 1}}',
              '{"size": {"height": 1000000, "width": 1000000}}', '{"image_mean": "abc", "image_std": "abc"}',
              '{"image_mean": [null, 1, 1], "image_std": [1, 1, 1]}', '{"image_mean": [1, 1, 1], "image_std": [0, 1, 1]}',
              '{"image_mean": [NaN, 1, 1], "image_std": [1, 1, 1]}', '{"rescale_factor": 0}']  # fmt: skip


@pytest.mark.parametrize("text", PROCESSORS, ids=ids_of(PROCESSORS))
@pytest.mark.parametrize("name", DOMAINS)
def test_image_processors(name, text, folders, tmp_path, capsys):
    predicted(capsys, folders, tmp_path, name, lambda folder: (folder / hub.BESIDE[0]).write_text(text))


CONFIGS = [
    {"num_labels": 10**9, "id2label": None}, {"id2label": {}}, {"id2label": {"0": [1], "1": "b", "2": "c"}}, {"id2label": {"0": " ", "1": "b", "2": "c"}},
    {"id2label": {"0": "a\x1b[31m", "1": "b", "2": "c"}}, {"backbone_config": {"num_layers": -1}}, {"hidden_dropout_prob": -1}, {"dropout": 1e30},
    {"encoder_layers": 0}, {"decoder_layers": 10**12}, {"num_queries": 0}, {"num_feature_levels": 10**12}, {"feat_strides": []},
]  # fmt: skip


@pytest.mark.parametrize("changes", CONFIGS, ids=ids_of(CONFIGS))
@pytest.mark.parametrize("name", DOMAINS)
def test_configs(name, changes, folders, tmp_path, capsys):
    def change(folder):
        table = json.loads((folder / hub.CONFIG).read_text())
        (folder / hub.CONFIG).write_text(json.dumps({**table, **changes}))

    predicted(capsys, folders, tmp_path, name, change)


INDICES = ["[]", "null", '{"weight_map": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "b.safetensors"}}',
           '{"weight_map": {"a": "../a.png"}}', '{"weight_map": {"a": "/etc/hostname"}}', '{"weight_map": {"a": "."}}']  # fmt: skip


@pytest.mark.parametrize("text", INDICES, ids=ids_of(INDICES))
def test_indices_of_weights(text, folders, tmp_path, capsys):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    shutil.copy(folders / "a.png", tmp_path)
    predicted(capsys, folders, tmp_path, "segmentation", change)


WEIGHTS = {
    "no numbers": lambda value: value * float("nan"),
    "whole": lambda value: value.int(),
    "empty": lambda value: value[:0],
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", DOMAINS)
def test_weights(kind, name, folders, tmp_path, capsys):
    def change(folder):
        file = folder / "model.safetensors"
        changed = {n: WEIGHTS[kind](v) if v.ndim else v for n, v in load_file(file).items()}
        save_file(changed, file, {"format": "pt"})

    predicted(capsys, folders, tmp_path, name, change)


def test_forms_of_answers_in_a_config_change_nothing(folders, tmp_path):
    folder = shutil.copytree(folders / "segmentation", tmp_path / "model")
    table = json.loads((folder / hub.CONFIG).read_text())
    (folder / hub.CONFIG).write_text(json.dumps({**table, "return_dict": False, "output_attentions": True}))
    words = [f"hf:{folder}", str(folders / "a.png"), "--device", "cpu"]
    assert commands.main(SESSIONS["segmentation"], "predict", words) == 0


def test_a_backbone_that_is_only_named_is_not_looked_up(monkeypatch):
    from transformers import backbone_utils

    monkeypatch.setattr(backbone_utils, "hf_api", None)
    table = {"model_type": "mask2former", "backbone": "resnet50", "use_timm_backbone": True, "backbone_config": None}
    assert hub.make_config(table, "it").backbone_config.backbone == "resnet50"


def test_sizes_of_every_known_model_are_within_the_bounds():
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as known

    kinds = {*known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
             *known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES, *known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES}  # fmt: skip
    for kind in kinds:
        hub.check_config(hub.plain_config(CONFIG_MAPPING[kind]()), kind)  # raises nothing
    with pytest.raises(UserError):
        hub.check_config({"a": [{"num_hidden_layers": 0}]}, "it")
