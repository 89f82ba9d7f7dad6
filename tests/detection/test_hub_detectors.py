"""The detectors of transformers behind the seam: the library's own answers and loss, class rows, adapters, folders."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ks_detection.checkpoints.export import export_official
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.models.hub.criterion import noised
from ks_detection.models.hub.files import read_detector
from ks_detection.models.hub.model import HubDetector
from ks_detection.models.hub.sampling import RtAttention, use_operator
from ks_detection.models.parts.padding import pad_images
from ks_detection.session import SESSION
from processes import environment
from tiny_hub_detectors import tiny_hub
from tiny_swap import run_swap

from common import adapters, hub, lora
from common.errors import UserError

KINDS = ["rf_detr", "lw_detr", "rt_detr_v2", "d_fine", "deimv2", "deformable_detr"]
READ = """
import sys, torch, transformers
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        found = {"logits": model(**torch.load(folder + "/given.pt")).logits, "names": model.config.id2label}
    torch.save(found, folder + "/found.pt")
assert not [name for name in sys.modules if name.partition(".")[0] in ("common", "ks_detection")]
"""


def targets(ignore: bool = False) -> list[dict]:
    one = {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.2, 0.3, 0.2, 0.2]])}
    two = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.6, 0.6, 0.4, 0.4]])}
    region = torch.tensor([[0.5, 0.5, 9.0, 9.0]]) if ignore else torch.zeros(0, 4)
    return [one | {"ignore": region}, two | {"ignore": torch.zeros(0, 4)}]


def pictures() -> list[torch.Tensor]:
    return [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`model_type` -> a folder of transformers."""
    place = tmp_path_factory.mktemp("hub")
    for kind in KINDS:
        model = tiny_hub(kind)
        hub.save(model, place / kind, ["a", "b", "c"], {})
    return place


@pytest.fixture(params=KINDS)
def folder(request, folders):
    return folders / request.param


def original(folder):
    kind = hub.model_type(folder)
    return tiny_hub(kind), read_detector(folder)


def test_answers_and_loss_are_the_librarys_own(folder):
    theirs, ours = original(folder)
    assert ours.class_table.names == ("a", "b", "c")
    given = ours.prepared(pictures())
    with torch.no_grad():
        wanted, found = theirs(**given), ours(pictures())
    torch.testing.assert_close(found["pred_logits"], wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["pred_boxes"], wanted.pred_boxes, rtol=1e-4, atol=1e-4)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets()]
    theirs.train(), ours.train()
    torch.manual_seed(0)
    wanted = theirs(**given, labels=labels).loss
    torch.manual_seed(0)
    outputs = ours(pictures(), targets())
    terms, items = ours.criterion().with_matches(outputs, targets())
    torch.testing.assert_close(ours.criterion().total(terms), wanted, rtol=1e-4, atol=1e-4)
    assert len(items.rows) == 3 and outputs["queries"].shape[:2] == outputs["pred_logits"].shape[:2] == (2, 12)


def test_queries_in_a_region_to_be_left_alone_have_no_gradient(folder):
    model = read_detector(folder).train()
    outputs = model(pictures(), targets(ignore=True))
    call = outputs["loss_call"]
    first = noised(call)
    logits = call["logits"] = call["logits"].detach().requires_grad_()
    call["outputs_class"] = call["outputs_class"].detach()
    call["pred_boxes"] = call["pred_boxes"].detach().clamp(0.05, 0.95)  # a box without an area lies in no region
    criterion = model.criterion()
    terms, _ = criterion.with_matches(outputs, targets(ignore=True))
    criterion.classification(terms).backward()
    moved = logits.grad[:, first:].abs().sum(-1) > 0
    groups = moved.shape[1] // 12
    assert moved[0].sum() == 2 * groups and moved[1].all()  # the matched ones; the second image has no region


def test_rows_are_widened_and_narrowed_wherever_classes_are_known(folder):
    model = read_detector(folder)
    before = {name: model.get_parameter(name).clone() for name in model.class_parameters()}
    model.set_rows(range(3), added=1)
    wide = {name: model.get_parameter(name).clone() for name in model.class_parameters()}
    model.set_rows([3, 1])
    narrow = {name: model.get_parameter(name) for name in model.class_parameters()}
    assert list(before) == list(wide) == list(narrow) and len(before) >= 2
    for name, rows in wide.items():
        assert torch.equal(rows[:3], before[name][:3]) and torch.equal(narrow[name][:2], rows[[3, 1]]), name
        assert len(rows) == len(before[name]) + 1 == len(narrow[name]) + 2
    outputs = model.train()(pictures(), [target | {"labels": target["labels"] % 2} for target in targets()])
    assert {layer["pred_logits"].shape[-1] for layer in (outputs, *outputs["aux_outputs"])} == {2}
    assert model.network.config.num_labels == model.config.num_classes == 2


@pytest.mark.filterwarnings("ignore:the classes to forget end")  # so few steps forget nothing
def test_a_swap_moves_adapters_and_new_rows_only(folder, tmp_path):
    base = read_detector(folder)
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    trainer, _ = run_swap(tmp_path, model=base)
    model = trainer.model
    assert len(lora.adapters(model)) >= 4
    assert all(layer.lora_B.abs().sum() > 0 for layer in lora.adapters(model).values())
    trained = set(trainer.rows.parameters)
    assert trained == set(model.class_parameters()) and all(rows == [3] for rows in trainer.rows.rows.values())
    for name, value in model.state_dict().items():
        if name in frozen:
            same = value.shape == frozen[name].shape
            assert torch.equal(value if same else value[:3], frozen[name] if same else frozen[name][:3]), name


def alike(one, other):
    """The same logits [N, Q, C] in any order of queries: random detectors turn a rounding of 1e-7 into 5e-4, which swaps
    queries of nearly the same score, and may put one in another's place."""
    return (torch.cdist(one, other).amin(-1) < 5e-3).float().mean() > 0.9


def test_folders_are_read_without_this_package_and_answer_alike(folders, tmp_path):
    expected = {}
    for kind in KINDS:
        model = read_detector(folders / kind)
        model.set_rows(range(3), added=1)
        model.class_table = model.class_table.extended(["new"])
        lora.inject(model, model.adapter_targets()["ffn"], rank=2)
        for layer in lora.adapters(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.05)
        merged, given = adapters.merge(model), model.prepared(pictures())
        with torch.no_grad():
            unmerged, expected[kind] = model(pictures())["pred_logits"], merged(pictures())["pred_logits"]
        assert alike(unmerged, expected[kind])
        torch.save(given, model.export(tmp_path / kind, "transformers") / "given.pt")
    command = [sys.executable, "-c", READ, *(tmp_path / kind for kind in KINDS)]
    done = subprocess.run(command, env=environment() | {"PYTHONPATH": ""}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        found = torch.load(tmp_path / kind / "found.pt")
        assert alike(found["logits"], expected[kind])
        assert list(found["names"].values()) == ["a", "b", "c", "new"]


def test_every_adapter_has_a_gradient(folder):
    model = read_detector(folder).train()
    names = [name for group in model.adapter_targets().values() for name in group]
    lora.inject(model.requires_grad_(False), names, rank=2)
    for layer in lora.adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    criterion = model.criterion()
    criterion.total(criterion(model(pictures(), targets()), targets())).backward()
    dead = [
        n for n, layer in lora.adapters(model).items() if not layer.lora_A.grad.any() or not layer.lora_B.grad.any()
    ]
    assert not dead


def test_a_file_of_ours_holds_it_too(folders, tmp_path):
    model = read_detector(folders / "rt_detr_v2")
    again = load_checkpoint(export_official(model, tmp_path / "x.pth"))
    with torch.no_grad():
        torch.testing.assert_close(again(pictures())["pred_logits"], model(pictures())["pred_logits"], rtol=0, atol=0)
    assert again.class_table == model.class_table


def test_operator_is_in_every_deformable_layer(folder):
    kind = hub.model_type(folder)
    layers = {"deformable_detr": 3, "rf_detr": 2, "lw_detr": 2}.get(kind, 3)
    assert use_operator(tiny_hub(kind)) == layers


def test_images_fill_the_canvas_where_masks_are_not_read(folders):
    model = read_detector(folders / "rt_detr_v2")
    given = model.prepared([torch.zeros(3, 50, 70), torch.zeros(3, 33, 40)])
    assert given["pixel_values"].shape == (2, 3, 64, 96)
    torch.testing.assert_close(given["pixel_values"][:, 0], torch.full((2, 64, 96), 0.485))  # not normalised
    model.config.size = (32, 64)
    assert model.prepared(pad_images([torch.zeros(3, 50, 70)]))["pixel_values"].shape == (1, 3, 32, 64)


def test_other_models_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="holds a 'vit'; detectors known here: rf_detr"):
        read_detector(tmp_path)


def test_a_model_object_of_transformers_is_wrapped_and_left_as_it_was():
    model = tiny_hub("rt_detr_v2")
    base = SESSION.given_model(model, {})
    assert base.classes == ["a", "b", "c"] and type(base.model) is HubDetector
    assert (
        model.loss_function is base.model.loss and type(model.model.decoder.layers[0].encoder_attn) is not RtAttention
    )


def test_a_name_that_only_a_run_folder_records_is_not_downloaded(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **rest: asked.append(rest) or 1 / 0)
    flags = SESSION.joined({"model": "hf:some/model"}, {})
    with pytest.raises(UserError, match="give --model hf:some/model again"):
        SESSION.base(flags)
    assert [rest["local_files_only"] for rest in asked] == [True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "rt_detr_v2"}, "give hf:FOLDER or hf:NAME"),
        ({"model": "hf:/nowhere"}, "there is no folder"),
        ({"model": "hf:x", "options": "a=1"}, "states its own config"),
    ],
)
def test_strange_models_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        SESSION.base(flags)
