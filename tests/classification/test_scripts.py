"""The image scripts, end to end on tiny models: what they write, say and refuse."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colours import FOLDER, picture, save_folders
from ks_classification import gs_lora_scripts
from ks_classification.session import SESSION
from picture_copies import assert_equal_answers
from PIL import Image
from test_classification_published import three_roots
from vit_files import tiny_bird

from common import commands, record

HERE = ["--precision", "fp32", "--device", "cpu", "--threads", "1", "--gallery", "1", "--no-report"]
MODEL = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "8", "--model-args", "embed_dim=32,depth=2,num_heads=2"]  # fmt: skip
KNOWN = ["red", "green", "blue", "black"]


def started(name, argv):
    return commands.main(SESSION, name, argv)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images of five colours, a base model that knows four of them, and a finished swap."""
    root = tmp_path_factory.mktemp("place")
    data = save_folders(root / "data", [*KNOWN, "white"])
    base = ["--classes", ",".join(KNOWN), "--epochs", "3", "--batch-size", "8", "--lr", "3e-3"]
    assert started("pretrain", ["--data", data, *MODEL, *HERE, *base, "--output-dir", str(root / "base")]) == 0
    torch.save(tiny_bird(4, rank=2), root / "bird.pth")
    assert started("swap", swap_flags(root, "--output-dir", str(root / "run"))) == 0
    return root


def swap_flags(root, *more):
    flags = ["--data", str(root / "data"), "--checkpoint", str(root / "base"), "--learn", "white", "--forget", "red"]
    return [*flags, *HERE, "--epochs", "1", "--batch-size", "6", "--lora-rank", "2", *more]


def recorded(folder):
    """{group: score} at the end of a run."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return {x["group"]: x for x in lines if "group" in x}


def test_a_swap_leaves_its_split_adapter_and_scores(place):
    names = {p.name for p in (place / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "split.json", "adapter", "done.json"} <= names
    split = record.read_json(place / "run" / "split.json")
    assert len(split["train"]) == 5 * 6 and len(split["test"]) == 5 * 3


def test_evaluate_gives_the_recorded_numbers(place, capsys):
    for folder in (place / "run", place / "base"):
        assert started("evaluate", [str(folder), "--json", "--device", "cpu"]) == 0
        scores = json.loads(capsys.readouterr().out)["scores"]
        for group, line in recorded(folder).items():
            assert scores[group]["total"] == line["score"], (folder, group)
            assert {k: v for k, v in scores[group].items() if k != "total"} == line["per_class"]


def test_evaluate_prints_a_table_and_reads_other_images(place, capsys, tmp_path):
    other = save_folders(tmp_path, [*KNOWN, "white"], train=1, test=2)
    assert started("evaluate", [str(place / "run"), "--data", other, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("top-1 accuracy (%)") and [x.split()[0] for x in lines[1:]] == ["learn", "white", "forget", "red", "retain", "green", "blue", "black"]  # fmt: skip


def test_predict_names_the_classes_as_table_or_json(place, capsys):
    files = [str(place / "data" / "test" / "black"), str(place / "data" / "test" / "white" / "0.png")]
    assert started("predict", [str(place / "base"), *files, "--json", "--top", "9", "--device", "cpu"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 4 and all(len(a["top"]) == 4 for a in answers), "as many as there are classes"
    for a in answers:
        shares = [t["probability"] for t in a["top"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-2)
    assert started("predict", [str(place / "run"), *files, "--top", "2", "--device", "cpu", "--batch-size", "3"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and all(row.count(" %") == 2 for row in table)


def test_copies_of_a_picture_get_the_same_answer(place, capsys, tmp_path):
    flags = ["--json", "--device", "cpu"]
    assert_equal_answers(lambda files: started("predict", [str(place / "run"), *files, *flags]), tmp_path / "c", capsys)


def test_predict_names_or_skips_what_is_no_image(place, capsys, tmp_path):
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    Image.fromarray(picture("red", 0)).save(tmp_path / "good.png")
    assert_refused(capsys, "predict", [str(place / "base"), str(tmp_path)], "half.jpg")
    assert started("predict", [str(place / "base"), str(tmp_path), "--skip-corrupt", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.count("good.png") == 1 and "left out" in err and "half.jpg" in err


def test_the_same_command_goes_on_and_changes_nothing(place):
    before = (place / "run" / "metrics.jsonl").read_bytes()
    assert started("swap", swap_flags(place, "--output-dir", str(place / "run"))) == 0
    assert (place / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
def test_an_earlier_swap_is_a_base_like_any_other(place, tmp_path, capsys):
    flags = [
        "--data",
        str(place / "data"),
        "--checkpoint",
        str(place / "run"),
        "--order",
        "forget",
        "--forget",
        "green",
    ]
    flags += [*HERE, "--steps", "1", "--batch-size", "4", "--lora-rank", "2", "--output-dir", str(tmp_path / "two")]
    assert started("swap", flags) == 0
    lines = [json.loads(x) for x in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0]["per_class"] | lines[1]["per_class"], {}
    for group, line in recorded(place / "run").items():
        if group != "forget":  # what the first swap forgot is in no group of the second
            last |= line["per_class"]
    assert first == pytest.approx(last), "it starts where the first swap ended"
    capsys.readouterr()
    assert started("evaluate", [str(tmp_path / "two"), "--json", "--device", "cpu"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["scores"]["forget"]["total"]
        == recorded(tmp_path / "two")["forget"]["score"]
    )


def test_a_published_file_is_swapped_and_all_its_parameters_can_train(place, tmp_path, capsys):
    flags = ["--data", str(place / "data"), "--checkpoint", str(place / "bird.pth"), "--class-names", ",".join(KNOWN)]
    flags += [
        "--allow-chance",
        "--learn",
        "white",
        "--forget",
        "red",
        "--method",
        "finetune",
        "--steps",
        "1",
        "--batch-size",
        "2",
    ]
    assert started("swap", [*flags, *HERE, "--output-dir", str(tmp_path / "run")]) == 0
    assert started("evaluate", [str(tmp_path / "run"), "--json", "--device", "cpu"]) == 0
    assert record.read_json(tmp_path / "run" / "model" / "spec.json")["name"] == "published/timm"


def test_faces_are_pretrained_and_swapped(place, tmp_path, capsys):
    face = ["--model", "face_p8s8", "--img-size", "16", "--model-args", "depth=1,width=64,num_heads=1,hidden=32"]
    steps = ["--steps", "2", "--batch-size", "4"]
    base = ["--data", str(place / "data"), "--classes", ",".join(KNOWN), *face, *HERE, *steps, "--face-head", "arcface"]
    assert started("pretrain", [*base, "--output-dir", str(tmp_path / "base")]) == 0
    flags = [
        "--data",
        str(place / "data"),
        "--checkpoint",
        str(tmp_path / "base"),
        "--learn",
        "white",
        "--forget",
        "red",
    ]
    flags += [*HERE, *steps, "--lora-rank", "2", "--lora-position", "all", "--eval-margin", "--allow-chance"]
    assert started("swap", [*flags, "--output-dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert started("evaluate", [str(tmp_path / "run"), "--json", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {g: s["total"] for g, s in scores.items()} == {g: x["score"] for g, x in recorded(tmp_path / "run").items()}


# ---- bad input -----------------------------------------------------------------------------------------------


def assert_refused(capsys, name, argv, word):
    """Exit code 2 and one line on stderr."""
    capsys.readouterr()
    assert started(name, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and word in err, err


FLAGS = [
    (["--forget", "red,white"], "'white' is in both --learn and --forget"),
    (["--forget", "pink"], "unknown class 'pink'; there are: "),
    (["--order", "xyz"], "`--order` must be one of fltf, fftl"),
    (["--lora-rank", "0"], "`--lora-rank` must be at least 1"),
    (["--lora-rank", "33"], "`--lora-rank` must be between 1 and 32"),
    (["--lern", "white"], "did you mean --learn?"),
    (["--learn"], "expected one argument"),
    (["--batch-size", "0"], "`--batch-size` must be at least 1"),
    (["--batch-size", "many"], "whole number"),
    (["--data", "nowhere"], "there is no folder nowhere"),
    (["--checkpoint", "nowhere"], "nowhere"),
    (["--method", "magic"], "magic"),
    (["--shots", "-1"], "`--shots`"),
    (["--eval-margin"], "`--eval-margin` needs a face model"),
    (["--split", "nowhere.json"], "nowhere.json"),
    (["--lora-targets", "no*such"], "no*such"),
]


@pytest.mark.parametrize("more, word", FLAGS, ids=[" ".join(f) for f, _ in FLAGS])
def test_bad_flags_are_refused_before_an_image_is_read(place, tmp_path, capsys, monkeypatch, more, word):
    from ks_classification import domain

    monkeypatch.setattr(domain, "readable", None)
    assert_refused(capsys, "swap", swap_flags(place, "--output-dir", str(tmp_path / "out"), *more), word)
    assert not (tmp_path / "out").exists(), "nothing is left behind"


def test_a_folder_of_another_plan_is_refused_before_an_image_is_read(place, capsys, monkeypatch):
    from ks_classification.data import images

    before = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr(images, "decode", None)
    flags = swap_flags(place, "--output-dir", str(place / "run"), "--order", "fftl")
    assert_refused(capsys, "swap", flags, "holds a run with plan.name 'fltf', this command has 'fftl'")
    assert {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()} == before


def test_a_config_cannot_run_code(place, tmp_path, capsys):
    (tmp_path / "evil.yaml").write_text("epochs: !!python/object/apply:os.system ['touch hacked']\n")
    flags = swap_flags(place, "--config", str(tmp_path / "evil.yaml"), "--output-dir", str(tmp_path / "out"))
    assert_refused(capsys, "swap", flags, "cannot run code")
    assert not (tmp_path / "out").exists() and not Path("hacked").exists()


def test_an_empty_class_folder_is_refused(place, tmp_path, capsys):
    data = save_folders(tmp_path / "data", [*KNOWN, "white"], train=1, test=1)
    (tmp_path / "data" / "train" / "pink").mkdir()
    flags = swap_flags(place, "--data", data, "--output-dir", str(tmp_path / "out"))
    assert_refused(capsys, "swap", flags, "pink is empty")
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_refused_or_counted(place, tmp_path, capsys):
    data = save_folders(tmp_path / "data", [*KNOWN, "white"], train=2, test=1)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(picture("red", 3, 64)).save(whole)
    (tmp_path / "data" / "train" / "red" / "cut.jpg").write_bytes(whole.read_bytes()[:700])
    flags = swap_flags(place, "--data", data, "--output-dir", str(tmp_path / "out"), "--steps", "1")
    assert_refused(capsys, "swap", flags, "cut.jpg")
    assert not (tmp_path / "out").exists()
    assert started("swap", [*flags, "--skip-corrupt"]) == 0
    assert record.read_json(tmp_path / "out" / "config.json")["identity"]["data"]["skipped"] == 1


def test_a_checkpoint_of_another_architecture_is_refused(place, tmp_path, capsys):
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.weight": torch.zeros(5, 8)}, tmp_path / "resnet.pth")
    flags = swap_flags(place, "--checkpoint", str(tmp_path / "resnet.pth"), "--output-dir", str(tmp_path / "out"))
    assert_refused(capsys, "swap", flags, "unknown architecture")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(place, tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record.os, "fsync", full)
    flags = swap_flags(place, "--output-dir", str(tmp_path / "out"))
    assert_refused(capsys, "swap", flags, "No space left on device; free space or choose another --output-dir")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "name, argv, word",
    [
        ("evaluate", ["nowhere"], "is no run"),
        ("evaluate", [], "required: run"),
        ("predict", ["nowhere", "DATA"], "nowhere is no run"),
        ("predict", ["BASE", "nowhere.png"], "there is no file or folder nowhere.png"),
        ("predict", ["BASE", str(FOLDER / "configs")], "holds no images"),
        ("predict", ["BASE", "DATA", "--top", "0"], "`--top` must be at least 1"),
        ("predict", ["BASE", "DATA", "--batch-size", "0"], "`--batch-size` must be at least 1"),
        ("pretrain", ["--checkpoint", "base.pth", "--output-dir", "OUT"], "`--checkpoint` is for swap.py"),
        ("pretrain", ["--model", "", "--output-dir", "OUT"], "which model?"),
        ("pretrain", ["--classes", "ten", "--output-dir", "OUT"], "--classes: unknown class 'ten'"),
        (
            "pretrain",
            ["--model-args", "checkpoint_path=evil.pth", "--output-dir", "OUT"],
            "'checkpoint_path' is not allowed",
        ),
        ("pretrain", ["--model", "hf-hub:someone/model", "--output-dir", "OUT"], "is not known to timm"),
        ("pretrain", ["--model-args", "colour=3", "--output-dir", "OUT"], "cannot build model"),
    ],
)
def test_the_other_scripts_refuse_in_one_line(place, tmp_path, capsys, name, argv, word):
    words = {"BASE": str(place / "base"), "DATA": str(place / "data"), "OUT": str(tmp_path / "out")}
    assert_refused(capsys, name, [words.get(a, a) for a in argv], word)
    assert not (tmp_path / "out").exists()


def test_a_moved_base_model_is_named(place, tmp_path, capsys):
    import shutil

    shutil.copytree(place / "run", tmp_path / "run")
    config = record.read_json(tmp_path / "run" / "config.json")
    config["flags"]["checkpoint"] = "gone"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert_refused(capsys, "evaluate", [str(tmp_path / "run")], "name it with --checkpoint")
    assert started("evaluate", [str(tmp_path / "run"), "--checkpoint", str(place / "base"), "--device", "cpu"]) == 0


@pytest.mark.parametrize("name", commands.VERBS)
def test_help_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        started(name, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "Example" in text and max(map(len, text.splitlines())) <= 120
    assert "(default: )" not in text, "an empty default is not worth a word"


# ---- the published names -------------------------------------------------------------------------------------


def test_a_published_script_runs_and_says_what_it_ignores(place, tmp_path):
    learn, forget, retain = three_roots(tmp_path)
    argv = [
        "--learnpath",
        learn,
        "--forgetpath",
        forget,
        "--retainpath",
        retain,
        "-r",
        str(place / "bird.pth"),
        "-w",
        "cpu",
    ]
    argv += ["-e", "1", "-b", "4", "--vit_depth", "12", "--allow-chance", "--outdir", str(tmp_path / "out")]
    program = [sys.executable, str(FOLDER / "train" / "exchange_fltf.py"), *argv]
    root = FOLDER.parent
    env = os.environ | {"PYTHONPATH": f"{root}:{FOLDER}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "without effect here: --vit_depth" in done.stderr
    config = record.read_json(tmp_path / "out" / "config.json")["identity"]
    assert config["plan"]["groups"] == {"learn": ["white"], "forget": ["n00000000"], "retain": ["n00000001", "n00000002", "n00000003"]}  # fmt: skip
    assert config["lora"]["lora_alpha"] == 1 and not config["train"]["train_head_rows"]
    assert len(config["data"]["classes"]) == 200 and sum(config["data"]["images"]["train"].values()) == 6 + 2 + 6


def test_a_published_block_runs_on_faces(place, tmp_path, capsys, monkeypatch):
    """run_forget on a small Face Transformer file and a plan that four classes allow."""
    from ks_classification.models.face import FaceTransformer

    torch.save(
        FaceTransformer(4, depth=1, width=64, num_heads=1, hidden=32, image_size=16).state_dict(), tmp_path / "face.pth"
    )
    data = save_folders(tmp_path / "data", KNOWN)
    (tmp_path / "plan.yaml").write_text("build: continual_forgetting\nfirst: 3\nper_task: 1\ntasks: 2\n")
    _, flags = gs_lora_scripts.command(
        "run_cl_forget", ["gs_lora_pp_fewshot", "--checkpoint", str(tmp_path / "face.pth"), "--data", data]
    )
    flags += ["--plan", str(tmp_path / "plan.yaml"), "--steps", "2", "--forget-weights", "0.3,0.4", "--device", "cpu"]
    flags += ["--prototype-forget-weights", "0.1,0.1", "--no-report", "--allow-chance"]
    flags += ["--output-dir", str(tmp_path / "run")]
    assert started("swap", flags) == 0
    assert set(recorded(tmp_path / "run")) == {"retain", "forget1", "forget2"}
    assert len(record.read_json(tmp_path / "run" / "split.json")["train"]) == 4 * 4
