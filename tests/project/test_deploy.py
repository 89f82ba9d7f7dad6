"""Models as ONNX files: they answer like the models, say what they know, and are read back by `predict`."""

import json

import onnxruntime
import pytest
import tiny_hub
import tiny_hub_detectors
import torch
from colours import save_folders, spec
from ks_classification.models import layers
from ks_classification.models.build import build
from ks_classification.session import SESSION as CLASSIFICATION
from ks_detection.checkpoints import onnx_graph as detectors
from ks_detection.checkpoints.export import export_official
from ks_detection.models.hub.files import detector_of
from ks_detection.session import SESSION as DETECTION
from ks_segmentation import load_hub
from ks_segmentation.checkpoints import onnx_graph as segmenters
from ks_segmentation.session import SESSION as SEGMENTATION
from PIL import Image
from tiny_deformable import VARIANTS, lively, tiny_deformable
from tiny_dino import tiny_dino
from tiny_mask2former import RESNET_18
from tiny_mask2former import model as tiny_mask2former

from common import commands, onnx_file
from common.domain import ClassTable
from common.errors import UserError
from common.session import Base, Loaded

NAMES = list("abcde")
SMALL = {"enc_layers": 1, "dec_layers": 1, "num_feature_levels": 2, "return_interm_indices": (2, 3)}
PLAN = {"name": "x", "groups": {"forget": ["b"], "retain": list("acde")}, "steps": [["forget", ["forget"]]]}


def loaded(model, about=None, **flags):
    """A model as a run that forgot class b leaves it."""
    record = {"identity": {"plan": {**PLAN, "keep_until_forgotten": True}}}
    return Loaded(Base(model.eval(), NAMES, about), flags, {"forget": ("b",), "retain": tuple("acde")}, record)


def notes(path):
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {i.name: i.shape for i in found.get_inputs()}
    return {k: json.loads(v) for k, v in found.get_modelmeta().custom_metadata_map.items() if k != "task"}, inputs


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """(file, the model in it)."""
    about = spec(NAMES, depth=1)
    model, path = build(about), tmp_path_factory.mktemp("onnx") / "a.onnx"
    assert CLASSIFICATION.export_onnx(loaded(model, about, crop=0.9), path) == path
    return path, model


def test_a_file_names_its_classes_and_what_was_forgotten(classifier):
    found, inputs = notes(classifier[0])
    assert (found["classes"], found["forgotten"]) == (NAMES, ["b"])
    assert found["groups"] == {"forget": ["b"], "retain": list("acde")}
    assert inputs[onnx_file.INPUT][1:] == [3, 16, 16] and isinstance(inputs[onnx_file.INPUT][0], str)


def test_a_file_in_the_place_of_a_classifier_answers_like_it(classifier):
    path, model = classifier
    given = CLASSIFICATION.load(path, {})
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for own, other in zip(layers.forward(model, images), layers.forward(given.base.model, images), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
    assert given.base.classes == NAMES and given.groups["forget"] == ("b",)


def test_predict_takes_a_file(classifier, tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "x.png")
    assert commands.main(CLASSIFICATION, "predict", [str(classifier[0]), str(tmp_path / "x.png"), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)[0]["top"]
    assert {entry["class"] for entry in best} == set(NAMES)
    assert sum(entry["probability"] for entry in best) == pytest.approx(1, abs=1e-5)


def test_evaluate_takes_a_file(classifier, tmp_path, capsys):
    path, model = classifier
    root = save_folders(tmp_path, ["red", "blue"], folder={"red": "a", "blue": "c"}.get)
    words = ["--data", str(root), "--classes", "a,c", "--precision", "fp32", "--json"]
    assert commands.main(CLASSIFICATION, "evaluate", [str(path), *words]) == 0, capsys.readouterr().err
    scores = json.loads(capsys.readouterr().out)["scores"]["chosen"]
    assert set(scores) == {"total", "a", "c"}
    given = CLASSIFICATION.load(path, {}).base
    domain, groups = CLASSIFICATION.scoring(loaded(model, given.about, data=str(root), classes="a,c", crop=0.9))
    assert domain.evaluate(model, groups["chosen"]) == pytest.approx(scores)


def test_a_file_of_another_domain_is_refused(classifier):
    with pytest.raises(UserError, match="model for classification"):
        DETECTION.load(classifier[0], {})


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be read by ONNX Runtime"):
        CLASSIFICATION.load(tmp_path / "a.onnx", {})


def test_a_file_that_answers_otherwise_is_not_written(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_save", lambda graph, path, *rest: path.write_bytes(classifier[0].read_bytes()))
    other = build(spec(NAMES, depth=1))
    torch.nn.init.normal_(other.head.weight)  # so not the one in the file
    with pytest.raises(UserError, match="answers otherwise"):
        CLASSIFICATION.export_onnx(loaded(other, spec(NAMES, depth=1)), tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx.*pip install 'knowledge-swapping\[deploy\]'"):
        CLASSIFICATION.export_onnx(loaded(build(spec(NAMES)), spec(NAMES)), tmp_path / "a.onnx")


def detector(kind):
    if kind == "dino":
        return tiny_dino(**SMALL)
    return lively(tiny_deformable(**VARIANTS["two-stage"], **SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dino", "two-stage"])
def test_detectors_of_open_size(kind, tmp_path):
    model = detector(kind)
    model.class_table = ClassTable(tuple(NAMES))
    DETECTION.export_onnx(loaded(model, test_size=64, longest=96), tmp_path / "a.onnx")  # checked at three sizes
    found, inputs = notes(tmp_path / "a.onnx")
    assert all(isinstance(inputs[onnx_file.INPUT][i], str) for i in (0, 2, 3)) and found["forgotten"] == ["b"]
    Image.effect_noise((90, 70), 90).save(tmp_path / "x.png")
    given, whole = (
        DETECTION.load(path, {}) for path in (tmp_path / "a.onnx", export_official(model, tmp_path / "a.pth"))
    )
    assert given.flags["test_size"] == 64
    whole.flags |= given.flags
    answers = [next(DETECTION.predict(m, [tmp_path / "x.png"], torch.device("cpu"))) for m in (given, whole)]
    assert answers[0].data == answers[1].data


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), [("rt_detr_v2", {}), ("rf_detr", {"decoder_layers": 1})])
def test_detectors_of_transformers(kind, changes, tmp_path, capsys):
    model = detector_of(tiny_hub_detectors.tiny_hub(kind, 5, **changes))
    file = DETECTION.export_onnx(loaded(model, test_size=64), tmp_path / "a.onnx")  # checked on 2, 1 and 3 images
    found, inputs = notes(file)
    assert inputs[onnx_file.INPUT][1:] == [3, 64, 64] and isinstance(inputs[onnx_file.INPUT][0], str)
    assert (found["classes"], found["forgotten"]) == (NAMES, ["b"])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, other = model.alike(image), DETECTION.load(file, {}).base.model(list(image))
    assert detectors.difference(*([part[name] for name in detectors.OUTPUTS] for part in (own, other))) < 1e-4
    rows = ["filename,xmin,ymin,xmax,ymax,class", *(f"{i}.png,10,10,40,40,a" for i in range(2))]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    for i in range(2):
        Image.effect_noise((64, 64), 90).save(tmp_path / f"{i}.png")
    words = [str(file), "--data", str(tmp_path), "--classes", "a", "--json"]
    assert commands.main(DETECTION, "evaluate", words) == 0, capsys.readouterr().err
    assert set(json.loads(capsys.readouterr().out)["scores"]["chosen"]) >= {"total", "a"}


@pytest.mark.slow
def test_a_segmenter_of_transformers_that_answers_by_pixels(tmp_path):
    two = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2]}
    two |= {"sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
    sizes = {**tiny_hub.SEGMENTERS["segformer"], **two}
    folder = tiny_hub.save("segformer", "SegformerForSemanticSegmentation", sizes, NAMES, tmp_path / "model")
    model, _ = load_hub(f"hf:{folder}")
    given = SEGMENTATION.load(SEGMENTATION.export_onnx(loaded(model), tmp_path / "a.onnx"), {}).base.model
    images = torch.ones(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(images)["logits"], given(images)["logits"], rtol=0, atol=1e-4)
    assert torch.equal(*(m.segment(images, [(30, 50)])[0] for m in (model, given)))


@pytest.mark.slow
def test_a_segmenter_that_asks_a_buffer_which_way_to_go(tmp_path):
    sizes = {**tiny_hub.SEGMENTERS["eomt"], "num_hidden_layers": 2, "num_blocks": 1}
    folder = tiny_hub.save("eomt", "EomtForUniversalSegmentation", sizes, NAMES, tmp_path / "model")
    model, _ = load_hub(f"hf:{folder}")
    whole = [*model.state_dict()]
    given = SEGMENTATION.load(SEGMENTATION.export_onnx(loaded(model), tmp_path / "a.onnx"), {}).base.model
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, other = model(images), given(images)
    for name in model.answered:
        torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-4)
    assert [*model.state_dict()] == whole


@pytest.mark.slow
def test_a_segmenter_of_open_size(tmp_path):
    model = tiny_mask2former(
        RESNET_18, "MODEL.MASK_FORMER.DEC_LAYERS", 2, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1
    )
    SEGMENTATION.export_onnx(loaded(model), tmp_path / "a.onnx")
    given, images = SEGMENTATION.load(tmp_path / "a.onnx", {}).base.model, torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        own, other = model(images), given(images)
    for name in model.answered:
        torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-4)
    assert torch.equal(*(m.segment(torch.ones(1, 3, 70, 90), [(35, 45)])[0] for m in (model, given)))


def test_answers_are_paired_whatever_their_order():
    logits, boxes = torch.tensor([[[2.0], [2.0], [-1.0]]]), torch.rand(1, 3, 4)
    turned = [logits[:, [1, 0, 2]], boxes[:, [1, 0, 2]]]
    assert detectors.difference([logits, boxes], turned) == 0
    assert detectors.difference([logits, boxes], [logits, boxes + 0.01]) >= 0.005


def test_another_mask_is_a_difference():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = logits[0, 1, 1] = 9
    masks = torch.randn(1, 2, 8, 8) * 3
    assert segmenters.difference([logits, masks], [logits, masks]) == 0
    assert segmenters.difference([logits, masks], [logits, masks.flip(-1)]) == 1
