"""The entry scripts on a tiny folder: what they write, and that bad input ends in one line and exit code 2."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mask2former import COMMON, RESNET

from common import cli

ROOT = Path(__file__).parent.parent / "semantic-segmentation"
SMALL = [
    "INPUT.CROP.SIZE",
    [64, 64],
    "INPUT.MIN_SIZE_TRAIN",
    [64],
    "INPUT.MIN_SIZE_TEST",
    64,
    "SOLVER.AMP.ENABLED",
    False,
]
QUICK = [
    "--steps",
    "1",
    "--batch-size",
    "2",
    "--precision",
    "fp32",
    "--eval-batch",
    "6",
    "--gallery",
    "1",
    "--no-report",
]
CLASSES = "abcdef"


def script(name):
    """An entry script as a module, whatever else is called so."""
    spec = importlib.util.spec_from_file_location(f"segmentation_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name, *argv):
    return cli.main(script(name).run, [str(a) for a in argv])


def write_yaml(path, words):
    tree = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        table = tree
        for part in key.split(".")[:-1]:
            table = table.setdefault(part, {})
        table[key.rpartition(".")[2]] = value
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config, a folder of twelve pictures with six classes, and a model pretrained on four of them for one step."""
    root = tmp_path_factory.mktemp("segmentation")
    write_yaml(root / "tiny.yaml", [*COMMON, *RESNET, *SMALL])
    for split, count in (("training", 12), ("validation", 6)):
        for i in range(count):
            ids = np.full((64, 64), i % 6, np.uint8)
            ids[:, 32:] = (i + 1) % 6
            for folder, array in (("images", np.repeat(ids[..., None] * 30, 3, 2)), ("annotations", ids)):
                path = root / "data" / folder / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "data/classes.json").write_text(json.dumps({"classes": list(CLASSES)}))
    code = call("pretrain", "--config-file", root / "tiny.yaml", "--data", root / "data", "--classes", "a,b,c,d",
                "--cache-dir", "", "--output-dir", root / "base", *QUICK)  # fmt: skip
    assert code == 0
    return root


def swap_flags(place, out, *more):
    return ["--checkpoint", place / "base", "--data", place / "data", "--learn", "e,f", "--forget", "a", "--cache-dir", "",
            "--output-dir", out, "--lora-rank", "2", *QUICK, *more]  # fmt: skip


@pytest.fixture(scope="module")
def swapped(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fltf"
    assert call("swap", *swap_flags(place, out)) == 0
    return out


def test_evaluate_gives_the_scores_of_the_run_again(swapped, capsys):
    assert call("evaluate", "--run", swapped, "--json", "--cache-dir", "", "--eval-batch", "6") == 0
    scores = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (swapped / "metrics.jsonl").read_text().splitlines()]
    last = {line["group"]: line["score"] for line in lines if "group" in line and line["phase"] == 2}
    assert {g: pytest.approx(s["miou"], abs=1e-3) for g, s in scores.items()} == last
    assert {"fwiou", "macc", "pacc", "IoU-e", "ACC-e"} <= set(scores["learn"])
    figures = json.loads((swapped / "details.json").read_text())["2"]
    for group, found in scores.items():  # the run's record holds the same
        totals = {name: figures[group]["figures"][name]["total"] for name in ("fwIoU", "ACC", "pACC")}
        assert totals == {
            n: pytest.approx(found[k], abs=1e-3) for n, k in zip(totals, ("fwiou", "macc", "pacc"), strict=True)
        }


def test_predict_writes_ids_and_an_overlay(swapped, place, tmp_path, capsys):
    picture = place / "data/images/validation/0.png"
    assert call("predict", picture, "--run", swapped, "--output-dir", tmp_path) == 0
    ids = np.asarray(Image.open(tmp_path / "0.ids.png"))
    assert ids.shape == (64, 64) and ids.max() < 7 and "%" in capsys.readouterr().out
    with Image.open(tmp_path / "0.overlay.png") as overlay:
        assert overlay.size == (64, 64)


def test_check_counts_classes_and_names_problems(place, tmp_path, capsys):
    assert call("check", place / "data") == 0
    assert "12 training and 6 test pictures, 6 classes" in capsys.readouterr().out
    import shutil

    shutil.copytree(place / "data", tmp_path / "bad")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "bad/annotations/training/3.png")
    Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / "bad/annotations/training/4.png")
    assert call("check", tmp_path / "bad") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3 and "4x3" in errors[0] and "id 99" in errors[1]


def test_an_exported_swap_is_a_detectron2_checkpoint_again(swapped, tmp_path):
    import ks_segmentation
    from ks_segmentation.session import load_run

    model, names, _ = load_run(swapped)
    path = ks_segmentation.export_detectron2(model, tmp_path / "m.pth")
    assert names == list(CLASSES)
    from ks_segmentation.config import load_config
    from ks_segmentation.session import _words

    config = load_config(None, [*_words(model.config.plain()), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6])
    loaded = ks_segmentation.load_checkpoint(path, config)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)["pred_masks"], model(images)["pred_masks"], rtol=1e-3, atol=1e-3)


def test_the_published_flags_are_translated(tmp_path):
    from ks_segmentation.published import translate

    ours, ignored = translate(
        ["--config-file", "c.yaml", "--num-gpus", "2", "--learnsetname", "pet", "--learnset", "L", "--forgetset", "F",
         "--retainset", "R", "MODEL.WEIGHTS", "m.pth", "SOLVER.IMS_PER_BATCH", "6", "OUTPUT_DIR", "out"], "lfl"
    )  # fmt: skip
    text = " ".join(ours)
    assert "--reference --order lfl" in text and "--batch-size 3" in text and "--output-dir out" in text
    assert ours[-6:-4] == ["MODEL.WEIGHTS", "m.pth"] and not ignored


@pytest.mark.parametrize("order", ["fltf", "fftl", "lfl", "flf"])
def test_every_order_has_its_published_script(order):
    assert f'main("{order}")' in (ROOT / f"swapping_{order}.py").read_text()


def published(place, folder):
    """The three published folders for the tiny data: classes 4.. of a model of four are new."""
    for part in ("train", "test"):
        for kind, array in (
            ("images", np.zeros((64, 64, 3), np.uint8)),
            ("annotations", np.full((64, 64), 4, np.uint8)),
        ):
            array = array.copy()
            if kind == "annotations":
                array[:, :10], array[:, 10:20], array[:, 20:30], array[:, 30:40], array[:, 40:50] = 5, 6, 7, 8, 9
            path = folder / "learn" / part / kind / "n.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    for name, ids in (("forget", (0, 0)), ("retain", (1, 2))):
        for part in ("training", "validation"):
            for kind in ("images", "annotations_detectron2"):
                array = np.zeros((64, 64, 3), np.uint8) if kind == "images" else np.full((64, 64), ids[0], np.uint8)
                if kind != "images":
                    array[:, 32:] = ids[1]
                path = folder / name / kind / part / "o.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return [f for name in ("learn", "forget", "retain") for f in (f"--{name}set", folder / name)]


def test_a_published_command_line_runs(place, tmp_path):
    from ks_segmentation.export import export_detectron2
    from ks_segmentation.published import translate
    from ks_segmentation.session import load_folder

    model, _ = load_folder(place / "base/model")
    export_detectron2(model, tmp_path / "m.pth")
    flags = [str(f) for f in published(place, tmp_path)]
    ours, _ = translate(
        ["--config-file", str(place / "tiny.yaml"), "--learnsetname", "pet", *flags, "MODEL.WEIGHTS", str(tmp_path / "m.pth"),
         "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path / "out"),
         "SOLVER.IMS_PER_BATCH", "2"], "fltf"
    )  # fmt: skip
    words = ours.index("MODEL.WEIGHTS")
    more = ["--class-names", "a,b,c,d", "--cache-dir", "", "--lora-rank", "2", "--no-report", "--gallery", "0"]
    assert call("swap", *ours[:words], *more, *ours[words:]) == 0
    plan = json.loads((tmp_path / "out/config.json").read_text())["identity"]["plan"]["groups"]
    assert plan["forget"] == ["a"] and plan["retain"] == ["b", "c"] and len(plan["learn"]) == 6


def one_line(capsys, code, *expected):
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("error: ") and "\n" not in error, error
    for text in expected:
        assert text in error


def test_bad_input_ends_in_one_line_and_code_2(place, tmp_path, capsys):
    import os
    import pickle
    import shutil

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "PWNED"),)

    start = [
        "--data",
        place / "data",
        "--learn",
        "e",
        "--forget",
        "a",
        "--cache-dir",
        "",
        "--output-dir",
        tmp_path / "r",
    ]
    tiny = ["--config-file", place / "tiny.yaml"]

    shutil.copytree(place / "data", tmp_path / "size")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "size/annotations/training/3.png")
    code = call("swap", *swap_flags(place, tmp_path / "r"), "--data", tmp_path / "size")
    one_line(capsys, code, "64x64 pixels but its mask", "4x3")

    shutil.copytree(place / "data", tmp_path / "id")
    Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / "id/annotations/training/3.png")
    code = call("swap", *swap_flags(place, tmp_path / "r"), "--data", tmp_path / "id")
    one_line(capsys, code, "id 99", "not in the class list")

    one_line(capsys, call("swap", *tiny, *start, "SOLVER.BASE_LRR", "1"), "Did you mean SOLVER.BASE_LR?")

    from ks_segmentation.export import export_detectron2
    from ks_segmentation.session import load_folder

    export_detectron2(load_folder(place / "base/model")[0], tmp_path / "four.pth")
    code = call("evaluate", *tiny, "--data", place / "data", "--checkpoint", tmp_path / "four.pth", "--cache-dir", "")
    one_line(capsys, code, "knows 4 classes and the config 5")

    (tmp_path / "os.yaml").write_text('OUTPUT_DIR: !!python/object/apply:os.mkdir ["PWNED"]')
    code = call("swap", "--config-file", tmp_path / "os.yaml", *start)
    one_line(capsys, code, "cannot run code")

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": Runs()}))
    code = call("swap", *tiny, *start, "MODEL.WEIGHTS", tmp_path / "bad.pkl")
    one_line(capsys, code, "nothing in it was run")
    assert not (tmp_path / "PWNED").exists()

    one_line(capsys, call("swap", *start), "--config-file")
    one_line(capsys, call("swap", *tiny, "--learn", "e", "--checkpoint", place / "base"), "--data")
    one_line(capsys, call("predict", tmp_path / "nowhere.png", "--run", place / "base"), "no file or folder")
    one_line(capsys, call("evaluate", "--run", tmp_path / "nowhere", "--cache-dir", ""), "nowhere")


def test_num_gpus_starts_torchs_launcher(monkeypatch):
    from ks_segmentation import launch

    calls = []
    import torch.distributed.run

    monkeypatch.setattr(torch.distributed.run, "main", calls.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.started_ranks("swap.py", ["--x"], 2) and not launch.started_ranks("swap.py", ["--x"], 1)
    assert calls == [["--standalone", "--nproc-per-node=2", "swap.py", "--x"]]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.started_ranks("swap.py", ["--x"], 2)


def test_a_swap_config_sets_the_flags_that_mean_the_same():
    from ks_segmentation import launch

    path = ROOT / "configs/ade20k/semantic-segmentation/swin/maskformer2_swin_base_IN21k_swap.yaml"
    found = launch.from_config(["--config-file", str(path)])
    assert (found["steps"], found["bound"], found["lora_rank"], found["clip"]) == (3500, 115, 8, 0.01)
    assert found["bound_per_item"] is False  # the bound is the published loss's
    assert launch.from_config(["--config-file", str(path.parent / "maskformer2_swin_tiny_bs16_160k.yaml")]) == {}


def test_detectron2_is_not_needed():
    from ks_segmentation import detectron2

    from common.errors import UserError

    if "detectron2" not in sys.modules:
        with pytest.raises(UserError, match="not installed"):
            detectron2.register("x", "digits")


def test_detectron2_gets_files_it_can_read(place, tmp_path):
    from ks_segmentation import layouts
    from ks_segmentation.detectron2 import entries

    found = entries(layouts.load(str(place / "data")).train[:2], tmp_path)
    assert found[0]["height"] == 64 and np.asarray(Image.open(found[0]["sem_seg_file_name"])).max() <= 5
