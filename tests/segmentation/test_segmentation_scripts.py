"""The entry scripts on a tiny folder: what they write, and that bad input ends in one line and exit code 2."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from ks_segmentation import export_detectron2, load_checkpoint, load_config
from ks_segmentation.checkpoints.folder import flat, load_folder
from ks_segmentation.data import catalogs, layouts
from ks_segmentation.session import SESSION
from picture_copies import assert_equal_answers
from PIL import Image
from tiny_mask2former import COMMON, RESNET

from common import commands
from common.errors import UserError

ROOT = Path(__file__).parents[2] / "semantic-segmentation"
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


def call(name, *argv):
    return commands.main(SESSION, name, [str(a) for a in argv])


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
            "--output-dir", out, "--lora-rank", "2", "--allow-chance", *QUICK, *more]  # fmt: skip


def test_a_base_at_chance_is_refused_before_anything_is_written(place, tmp_path, capsys):
    flags = [flag for flag in swap_flags(place, tmp_path / "out") if flag != "--allow-chance"]
    one_line(capsys, call("swap", *flags), "4 known classes", "--allow-chance")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def swapped(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fltf"
    assert call("swap", *swap_flags(place, out)) == 0
    return out


def test_evaluate_gives_the_scores_of_the_run_again(swapped, capsys):
    capsys.readouterr()
    assert call("evaluate", swapped, "--json", "--cache-dir", "", "--eval-batch", "6") == 0
    found = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (swapped / "metrics.jsonl").read_text().splitlines()]
    last = {line["group"]: line["score"] for line in lines if "group" in line and line["phase"] == 2}
    assert {g: pytest.approx(s["total"], abs=1e-3) for g, s in found["scores"].items()} == last
    assert set(found["scores"]["learn"]) == {"total", "e", "f"} and found["metric"] == "miou"
    assert set(found["figures"]["learn"]) == {"fwIoU", "ACC", "pACC"} and "e" in found["figures"]["learn"]["ACC"]
    details = json.loads((swapped / "details.json").read_text())["2"]
    for group, figures in found["figures"].items():  # the run's record holds the same
        for name, values in figures.items():
            assert values["total"] == pytest.approx(details[group]["figures"][name]["total"], abs=1e-3)


def test_evaluate_scores_named_classes_as_one_group(swapped, capsys):
    capsys.readouterr()
    assert call("evaluate", swapped, "--classes", "b,e", "--cache-dir", "", "--no-per-class") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["mean", "IoU", "(%)", "fwIoU", "ACC", "pACC"]
    assert [row.split()[0] for row in rows] == ["chosen"] and len(rows[0].split()) == 5


def test_predict_writes_ids_and_an_overlay(swapped, place, tmp_path, capsys):
    image = place / "data/images/validation/0.png"
    assert call("predict", swapped, image, "--output-dir", tmp_path) == 0
    ids = np.asarray(Image.open(tmp_path / "0.ids.png"))
    assert ids.shape == (64, 64) and ids.max() < 7 and "%" in capsys.readouterr().out
    with Image.open(tmp_path / "0.overlay.png") as overlay:
        assert overlay.size == (64, 64)
    assert call("predict", swapped, image.parent, "--json") == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 6 and all(sum(c["share"] for c in a["classes"]) == pytest.approx(1) for a in answers)
    first = max(range(7), key=lambda row: (ids == row).sum())
    assert answers[0]["classes"][0] == {"class": [*CLASSES, "x"][first], "share": pytest.approx((ids == first).mean())}


def test_copies_of_a_picture_get_the_same_answer(swapped, capsys, tmp_path):
    assert_equal_answers(lambda files: call("predict", swapped, *files, "--json"), tmp_path / "c", capsys)


def test_predict_leaves_damaged_images_out_when_asked(swapped, place, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    shutil.copy(place / "data/images/validation/0.png", tmp_path / "b.png")
    one_line(capsys, call("predict", swapped, tmp_path), "a.png cannot be read")
    assert call("predict", swapped, tmp_path, "--skip-corrupt") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "b.png" in out and "left out: " in err


def test_check_counts_classes_and_names_problems(place, tmp_path, capsys):
    capsys.readouterr()
    assert call("check", place / "data") == 0
    assert "12 training and 6 test images, 6 classes" in capsys.readouterr().out
    shutil.copytree(place / "data", tmp_path / "bad")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "bad/annotations/training/3.png")
    for name in (4, 5, 6):
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / f"bad/annotations/training/{name}.png")
    assert call("check", tmp_path / "bad") == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum("4x3" in line for line in lines) == 1 and "2 errors, 0 notes" in lines[-1]
    (strange,) = [line for line in lines if "id 99" in line]
    assert "4.png" in strange and "2 more" in strange, "one line for all masks with one id"


def test_an_exported_swap_is_a_detectron2_checkpoint_again(swapped, tmp_path):
    base = SESSION.load(swapped, {}).base
    assert base.classes == list(CLASSES)
    assert call("export", swapped, tmp_path / "m.pth") == 0
    config = load_config(None, [*flat(base.model.config.plain()), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6])
    loaded = load_checkpoint(tmp_path / "m.pth", config)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)["pred_masks"], base.model(images)["pred_masks"], rtol=1e-3, atol=1e-3)


def test_an_exported_folder_is_a_base_and_so_is_a_swap(swapped, place, tmp_path, capsys):
    assert call("export", swapped, tmp_path / "folder", "--format", "folder") == 0
    names, shares = [], []
    for model in (tmp_path / "folder", swapped):
        base = SESSION.base({"checkpoint": str(model)})
        with torch.no_grad():
            shares.append(base.model.eval()(torch.ones(1, 3, 64, 64))["pred_masks"])
        names.append(base.classes)
    assert names == [list(CLASSES)] * 2
    torch.testing.assert_close(*shares)


def test_words_are_read_behind_flags_with_values(swapped, place, tmp_path):
    """`KEY value` words of swap, pretrain, evaluate and predict, and where they end up."""
    assert SESSION.tidy(["run", "--limit", "3", "SEED", "-1"]) == ["run", "--limit", "3", "--set", "SEED", "-1"]
    assert SESSION.tidy(["A.B", "--x", "MODEL.pth", "TEST"]) == ["A.B", "--x", "MODEL.pth", "TEST"]
    once = SESSION.tidy(["MODEL.WEIGHTS", "x.pkl", "SOLVER.BASE_LR", "1", "--steps", "3"])
    assert once == ["--set", "MODEL.WEIGHTS", "x.pkl", "--set", "SOLVER.BASE_LR", "1", "--steps", "3"]
    assert SESSION.tidy(once) == once
    image, window = place / "data/images/validation/0.png", ["TEST.SLIDING_WINDOW", "48"]
    assert call("predict", swapped, image, "--device", "cpu", *window) == 0
    assert call("evaluate", swapped, "--cache-dir", "", "--eval-batch", "6", *window) == 0
    flags = swap_flags(place, tmp_path / "out", "--order", "learn", *window, "INPUT.RANDOM_FLIP", "none")
    assert call("swap", *flags) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["flags"]["opts"] == [*window, "INPUT.RANDOM_FLIP", "none"]
    assert config["identity"]["data"]["config"]["TEST"]["SLIDING_WINDOW"] == 48
    loaded = SESSION.load(tmp_path / "out", {"opts": ["TEST.SLIDING_WINDOW", "40"]}).base.model.config
    assert (loaded.TEST.SLIDING_WINDOW, loaded.INPUT.RANDOM_FLIP) == (40, "none")


def test_a_base_model_named_by_the_config_alone_may_move(place, tmp_path, capsys):
    export_detectron2(load_folder(place / "base/model")[0], tmp_path / "m.pth")
    four = ["--config-file", place / "tiny.yaml", "--class-names", "a,b,c,d"]
    four += ["--data", place / "data", "--cache-dir", "", "--allow-chance", *QUICK]
    words = ["MODEL.WEIGHTS", tmp_path / "m.pth", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    learn = ["--learn", "e", "--lora-rank", "2", "--output-dir", tmp_path / "run"]
    assert call("swap", *four, *learn, *words) == 0
    again = ["evaluate", tmp_path / "run", "--cache-dir", ""]
    assert call(*again) == 0
    (tmp_path / "m.pth").rename(tmp_path / "moved.pth")
    capsys.readouterr()
    one_line(capsys, call(*again), "m.pth, is not there; name it with --checkpoint")
    assert call(*again, "--checkpoint", tmp_path / "moved.pth") == 0
    assert call(*again, "MODEL.WEIGHTS", tmp_path / "moved.pth") == 0


def test_a_checkpoint_is_evaluated_and_asked_with_its_config(place, tmp_path, capsys):
    export_detectron2(load_folder(place / "base/model")[0], tmp_path / "m.pth")
    where = [tmp_path / "m.pth", "--config-file", place / "tiny.yaml", "--class-names", "a,b,c,d"]
    words = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    capsys.readouterr()
    assert (
        call("evaluate", *where, "--data", place / "data", "--cache-dir", "", "--precision", "fp32", "--json", *words)
        == 0
    )
    found = json.loads(capsys.readouterr().out)["scores"]
    lines = [json.loads(line) for line in (place / "base/metrics.jsonl").read_text().splitlines()]
    assert found["all"]["total"] == pytest.approx(next(x for x in lines[::-1] if "score" in x)["score"], abs=1e-3)
    image = place / "data/images/validation/0.png"
    assert call("predict", where[0], image, *where[1:], *words) == 0
    by_file = capsys.readouterr().out
    assert call("predict", place / "base", image) == 0
    assert capsys.readouterr().out == by_file


@pytest.mark.parametrize("name", commands.VERBS)
def test_help_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        call(name, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "Example" in text and max(map(len, text.splitlines())) <= 120
    assert "(default: )" not in text, "an empty default is not worth a word"


def published_folders(place, folder):
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
    export_detectron2(load_folder(place / "base/model")[0], tmp_path / "m.pth")
    flags = ["--config-file", place / "tiny.yaml", "--learnsetname", "pet", *published_folders(place, tmp_path)]
    more = [
        "--class-names",
        "a,b,c,d",
        "--cache-dir",
        "",
        "--lora-rank",
        "2",
        "--no-report",
        "--gallery",
        "0",
        "--resume",
        "--allow-chance",
    ]
    words = ["MODEL.WEIGHTS", tmp_path / "m.pth", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "SOLVER.MAX_ITER", "1"]
    words += ["OUTPUT_DIR", tmp_path / "out", "SOLVER.IMS_PER_BATCH", "2"]
    program = [sys.executable, ROOT / "swapping_fltf.py", *flags, *more, *words]
    env = os.environ | {"PYTHONPATH": f"{ROOT.parent}:{ROOT.parent / 'object-detection/ops'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(w) for w in program], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "without effect here: --resume" in done.stderr
    identity = json.loads((tmp_path / "out/config.json").read_text())["identity"]
    plan, train = identity["plan"]["groups"], identity["train"]
    assert plan["forget"] == ["a"] and plan["retain"] == ["b", "c"] and len(plan["learn"]) == 6
    assert (train["steps"], train["batch_size"], train["train_head_rows"]) == (1, 2, False)
    scores = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    last = {line["group"]: line["score"] for line in scores if "group" in line and line["phase"] == 2}
    found, groups = SESSION.scoring(SESSION.load(tmp_path / "out", {}))
    assert {g: set(c) for g, c in groups.items()} == {g: set(c) for g, c in plan.items()} and set(groups) == set(last)
    assert found.size(plan["learn"], train=False) == 1


def one_line(capsys, code, *expected):
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("error: ") and "\n" not in error, error
    for text in expected:
        assert text in error


class Runs:
    """Would make a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def spoiled(place, folder, ids):
    """The tiny data with one other training mask."""
    shutil.copytree(place / "data", folder)
    Image.fromarray(ids).save(folder / "annotations/training/3.png")
    return folder


def test_bad_input_ends_in_one_line_and_code_2(place, tmp_path, capsys):
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
    export_detectron2(load_folder(place / "base/model")[0], tmp_path / "four.pth")
    (tmp_path / "os.yaml").write_text('OUTPUT_DIR: !!python/object/apply:os.mkdir ["PWNED"]')
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": Runs(tmp_path / "PWNED")}))
    size = spoiled(place, tmp_path / "size", np.zeros((3, 4), np.uint8))
    strange = spoiled(place, tmp_path / "id", np.full((64, 64), 99, np.uint8))
    flags, data = swap_flags(place, tmp_path / "r"), ["--data", place / "data", "--cache-dir", ""]
    capsys.readouterr()
    one_line(capsys, call("swap", *flags, "--data", size), "64x64 pixels but its mask", "4x3")
    one_line(capsys, call("swap", *flags, "--data", strange), "id 99", "not in the class list")
    one_line(capsys, call("swap", *flags, "--data-classes", "a,b", "--data", "digits"), "names its classes itself")
    one_line(capsys, call("swap", *tiny, *start, "SOLVER.BASE_LRR", "1"), "Did you mean SOLVER.BASE_LR?")
    one_line(capsys, call("swap", *tiny, *start, "SEED"), "'SEED' has no partner")
    one_line(capsys, call("swap", *tiny, *start, "SEED=3"), "'SEED=3' has no partner")
    one_line(capsys, call("evaluate", tmp_path / "four.pth", *tiny, *data), "knows 4 classes and the config 5")
    one_line(capsys, call("swap", "--config-file", tmp_path / "os.yaml", *start), "cannot run code")
    words = ["MODEL.WEIGHTS", tmp_path / "bad.pkl"]
    one_line(capsys, call("swap", *tiny, *start, *words), "nothing in it was run")
    assert not (tmp_path / "PWNED").exists() and not Path("PWNED").exists()
    one_line(capsys, call("swap", *start), "--config-file")
    one_line(capsys, call("swap", *tiny, "--learn", "e", "--checkpoint", place / "base"), "--data")
    one_line(capsys, call("swap", *tiny, *data, "--checkpoint", place / "base"), "what shall change?")
    one_line(capsys, call("pretrain", *tiny, *data, "--checkpoint", place / "base"), "`--checkpoint` is for swap.py")
    one_line(capsys, call("predict", place / "base", tmp_path / "nowhere.png"), "no file or folder")
    one_line(capsys, call("evaluate", tmp_path / "nowhere", "--cache-dir", ""), "nowhere")
    one_line(capsys, call("export", place / "base", tmp_path / "x.zip"), "ends in .pth or .pkl")
    assert not (tmp_path / "r").exists(), "nothing is left behind"


def test_detectron2_is_not_needed():
    if "detectron2" not in sys.modules:
        with pytest.raises(UserError, match="not installed"):
            catalogs.register("x", "digits")


def test_detectron2_gets_files_it_can_read(place, tmp_path):
    found = catalogs.entries(layouts.load(str(place / "data")).train[:2], tmp_path)
    assert found[0]["height"] == 64 and np.asarray(Image.open(found[0]["sem_seg_file_name"])).max() <= 5
