"""Segmenters of transformers: rows, adapters, the loss, a swap, and what others read of it."""

import json
import sys

import ks_segmentation
import pytest
import tiny_hub
import torch
from alone import Alone
from ks_segmentation import models
from ks_segmentation.checkpoints.folder import load_hub
from ks_segmentation.data import layouts
from ks_segmentation.data.digits import digit_scenes
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.models.parts.targets import UNKNOWN
from ks_segmentation.models.segmenters import available, segmenter_type
from ks_segmentation.session import SESSION

from common import adapters, commands, lora
from common.errors import UserError

NAMES = ["ground", *map(str, range(6))]
WORDS = ["INPUT.COLOR_AUG_SSD", False, "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", [64]]
FEW = digit_scenes(50, 20)
KINDS = list(tiny_hub.SEGMENTERS)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """A few scenes of digits in the place of 1,800."""
    monkeypatch.setattr(layouts, "digit_scenes", lambda: FEW)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    for kind, sizes in tiny_hub.SEGMENTERS.items():
        tiny_hub.save(kind, segmenter_type(kind).network_class, sizes, NAMES, place / kind)
    return place


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    process = Alone(tmp_path_factory.mktemp("alone"))
    yield process
    process.close()


def some_labels():
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(1)).sort(-1).values
    labels[:, :4], labels[:, 4:8] = IGNORE, UNKNOWN
    return labels


def images(model):
    return model.normalise(torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(2)))


def test_every_file_is_a_segmenter_of_transformers():
    assert sorted(KINDS) == available() and all(segmenter_type(kind).network_class for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_old_rows_answer_as_before_and_all_rows_have_their_class(folders, kind):
    model, names = load_hub(f"hf:{folders / kind}")
    assert names == NAMES and model.num_classes == 7 and model.config.INPUT.MIN_SIZE_TEST == 64
    assert model.pixel_mean.flatten().tolist() == pytest.approx([102, 127.5, 153])
    pixels = images(model)
    with torch.inference_mode():
        before = model.post_process(model(pixels), 0)
        model.set_rows(range(7), 2)
        widened = model(pixels)
        model.set_rows([3, 0, 1, 2, 4, 5, 6])
        after = model.post_process(model(pixels), 0)
    assert before.shape[0] == 7 and model.post_process(widened, 0).shape[0] == 9 and (before >= 0).all()
    torch.testing.assert_close(after, before[[3, 0, 1, 2, 4, 5, 6]])
    for name in model.class_parameters():
        assert model.get_parameter(name).shape[0] == 7 + model.rows_behind


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_has_a_gradient_and_merging_changes_nothing(folders, kind):
    model, _ = load_hub(f"hf:{folders / kind}")
    targets = model.adapter_targets()
    names = [*targets["ffn"], *targets["attention"]]
    assert targets["ffn"] and not set(targets["ffn"]) & set(targets["attention"])
    model.requires_grad_(False)
    lora.inject(model, names, 2, 2.0)
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    pixels, labels = images(model), some_labels()
    for norm in (m for m in model.train().modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()
    torch.manual_seed(0)
    loss, rows = model.judge(model(pixels), labels)
    assert [one.scores.shape for one in rows] == [(3, 7), (3, 7)] and loss.isfinite()
    loss.backward()
    dead = [name for name, layer in lora.adapters(model).items() for f in layer.live() if not f.grad.abs().sum() > 0]
    assert not dead
    with torch.inference_mode():
        alone = model.eval().post_process(model(pixels), 1)
        merged = adapters.merge(model)
        torch.testing.assert_close(merged.post_process(merged(pixels), 1), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_joined_images_are_judged_as_alone(folders, kind):
    """Rows of a batch are those of its images; pixels whose class is not told have no segment."""
    model, _ = load_hub(f"hf:{folders / kind}")
    pixels, labels = images(model), some_labels()
    with torch.inference_mode():
        outputs = model(pixels)
        second = model.part(outputs, slice(1, 2))
        torch.testing.assert_close(model.post_process(second, 0), model.post_process(outputs, 1))
        _, rows = model.judge(second, labels[1:])
        assert rows[0].target.classes.tolist() == [0, 1, 2]
        masks, called, sure = model.regions(outputs, 1, lambda maps: maps)
        assert masks.dtype == torch.bool and len(masks) == len(called) > 0 and 0 <= sure.min() <= sure.max() <= 1
        answer = model.segment(pixels, [(50, 70), (64, 64)])
        assert [a.shape for a in answer] == [(50, 70), (64, 64)] and max(int(a.max()) for a in answer) < 7


FAST = ["--steps", "2", "--batch-size", "2", "--threads", "1", "--device", "cpu", "--gallery", "0", "--lora-rank", "2", "--eval-batch", "20"]  # fmt: skip
SWAP = ["--data", "digits", "--learn", "8", "--forget", "1", "--retain", "ground,0,2", "--allow-chance", "--set", "INPUT.RANDOM_FLIP", "none"]  # fmt: skip


def run(verb, *words):
    assert commands.main(SESSION, verb, [str(word) for word in words]) == 0


@pytest.mark.parametrize(
    "kind", [k if k in ("mask2former", "segformer") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_swap_moves_adapters_and_new_rows_and_its_export_is_read_by_transformers_alone(
    folders, kind, tmp_path, alone
):
    folder = folders / kind
    run("swap", "--model", f"hf:{folder}", *SWAP, *FAST, "--output-dir", tmp_path / "run", "--no-report")
    base, names = load_hub(f"hf:{folder}")
    swapped = SESSION.load(tmp_path / "run", {}).base
    assert swapped.classes == [*names, "8"] and lora.adapters(swapped.model)
    for name in base.class_parameters():
        old, new = base.get_parameter(name), swapped.model.get_parameter(name)
        end = len(old) - base.rows_behind
        assert torch.equal(new[:end], old[:end]) and torch.equal(new[end + 1 :], old[end:])  # "no object" stays last
        assert not torch.equal(new[end], old[:end].mean(0))
    plain = dict(adapters.merge(base).named_parameters())
    for name, value in swapped.model.named_parameters():
        assert "lora_" in name or name in base.class_parameters() or torch.equal(value, plain[name]), name
    run("evaluate", tmp_path / "run")
    run("export", tmp_path / "run", tmp_path / "out", "--format", "folder")
    run("evaluate", tmp_path / "out", "--data", "digits", *SWAP[-3:])
    pixels = images(swapped.model)
    with torch.inference_mode():
        outputs = swapped.model(pixels)
        expected = outputs.get("pred_logits", outputs.get("logits"))
    theirs = alone(segmenter_type(kind).network_class, tmp_path / "out", pixels)
    if kind in ("segformer", "upernet"):
        size = theirs.shape[-2:]
        expected = torch.nn.functional.interpolate(expected, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)
    labels = json.loads((tmp_path / "out/config.json").read_text())["id2label"]
    assert labels == {str(i): name for i, name in enumerate(swapped.classes)}


NEW = """
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.pixels import Maps, PixelSegmenter
from ks_segmentation.models.parts.watch import watched


class MobileVit(FromHub, PixelSegmenter):
    network_class = "MobileViTForSemanticSegmentation"
    class_layers = ("network.segmentation_head.classifier.convolution",)

    def maps(self, images):
        with watched(self.get_submodule(self.class_layers[0])) as (classes,):
            self.network(images)
        return Maps(classes.calls[0].output, classes.calls[0].input)


SEGMENTER = MobileVit
"""
MOBILE = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 16, 16], "num_attention_heads": 2,
          "aspp_out_channels": 16, "image_size": 64, "patch_size": 2, "hidden_dropout_prob": 0.0}  # fmt: skip


def test_a_new_model_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/mobilevit.py").write_text(NEW)
    folder = tiny_hub.save("mobilevit", "MobileViTForSemanticSegmentation", MOBILE, NAMES, tmp_path / "base")
    with pytest.raises(UserError, match="a mobilevit is no segmenter known here; there are: eomt, mask2former"):
        load_hub(f"hf:{folder}")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "files")])
    monkeypatch.delitem(sys.modules, "ks_segmentation.models.mobilevit", raising=False)
    result = ks_segmentation.swap(load_hub(f"hf:{folder}", WORDS)[0], "digits", learn=["8"], forget=["1"], retain="ground,0",
                                  class_names=NAMES, steps=2, batch_size=2, threads=1, device="cpu",
                                  lora_rank=2, eval_batch=20, allow_chance=True)  # fmt: skip
    assert set(result.scores) == {"learn", "forget", "retain"} and result.model.num_classes == 8
    assert all(layer.lora_B.abs().sum() > 0 for layer in lora.adapters(result.model).values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "segformer"], "must be hf:FOLDER or hf:NAME"),
        (["--model", "hf:{}", "--checkpoint", "x"], "leave --checkpoint and --config-file out"),
        (["--model", "hf:{}/missing"], "there is no folder"),
    ],
)
def test_what_does_not_name_a_model_is_one_line(folders, tmp_path, words, message, capsys):
    words = [word.format(folders / "segformer") for word in words]
    assert commands.main(SESSION, "swap", [*words, *SWAP, "--output-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_of_a_hub_name_downloads_nothing_by_itself(folders, tmp_path, monkeypatch, capsys):
    run("swap", "--model", f"hf:{folders / 'segformer'}", *SWAP, *FAST, "--output-dir", tmp_path / "run", "--no-report")
    record = tmp_path / "run/config.json"
    record.write_text(record.read_text().replace(str(folders / "segformer"), "someone/segformer"))
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **rest: asked.append(rest) or 1 / 0)
    assert commands.main(SESSION, "evaluate", [str(tmp_path / "run")]) == 2
    assert "give --model hf:someone/segformer again to allow it" in capsys.readouterr().err
    assert [rest["local_files_only"] for rest in asked] == [True]


def test_permanent_removal_leaves_no_row_of_the_forgotten(folders, tmp_path):
    run("swap", "--model", f"hf:{folders / 'segformer'}", *SWAP, *FAST, "--output-dir", tmp_path / "run", "--no-report")
    run("export", tmp_path / "run", tmp_path / "out", "--format", "folder", "--permanent")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "1" not in config["id2label"].values() and len(config["id2label"]) == 7
