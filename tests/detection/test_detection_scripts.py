"""The verbs of detection: bad input is one line and exit code 2; evaluate and predict repeat a run's numbers."""

import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import ks_detection
import pytest
import torch
from ks_detection.checkpoints.export import export_official
from ks_detection.session import SESSION, SourceConfig, open_data
from picture_copies import assert_equal_answers
from PIL import Image
from test_detection_data import coco_folder
from tiny_swap import base, pictures

from common import commands
from common.schema import read_json

SVG = "{http://www.w3.org/2000/svg}"

FOLDER = Path(__file__).parents[2] / "object-detection"
TINY = [
    "--no-augment",
    "--test-size",
    "64",
    "--longest",
    "96",
    "--steps",
    "1",
    "--batch-size",
    "1",
    "--lora-rank",
    "2",
    "--gallery",
    "0",
]


def started(verb, argv):
    return commands.main(SESSION, verb, argv)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A checkpoint that knows a, b and c, and a COCO folder that shows them and a new class."""
    root = tmp_path_factory.mktemp("known")
    model = base()
    checkpoint = export_official(model, root / "base.pth", model.class_table)
    names = ["a", "b", "c", "new"]
    entries, images = [], []
    (root / "data" / "images").mkdir(parents=True)
    for number, picture in enumerate(pictures().train):
        picture.image.save(root / "data" / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": picture.width, "height": picture.height})
        for thing in picture.annotations:
            left, top, right, bottom = thing.box
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": names.index(thing.label)}
            entries.append(entry | {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    for part in ("train", "val"):
        content = {"images": images, "annotations": entries, "categories": categories}
        (root / "data" / f"instances_{part}.json").write_text(json.dumps(content))
    return {"checkpoint": str(checkpoint), "data": str(root / "data"), "root": root}


def swap_flags(known, *more):
    flags = ["--checkpoint", known["checkpoint"], "--data", known["data"], "--learn", "new", "--forget", "b"]
    return [*flags, *TINY, "--allow-chance", *more]


def fails(capsys, verb, argv, message):
    capsys.readouterr()
    assert started(verb, argv) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0], error


def test_bad_input_is_one_line_and_exit_code_two(known, capsys, tmp_path):
    out = ["--output-dir", str(tmp_path / "out")]
    fails(capsys, "swap", swap_flags(known, "--learn", "zebra", *out), "zebra")
    fails(capsys, "swap", swap_flags(known, "--checkpoint", "none.pth", *out), "no such file")
    fails(capsys, "swap", swap_flags(known, "--bogus", "1", *out), "--bogus")
    fails(capsys, "swap", swap_flags(known, "--sizes", "big", *out), "--sizes")
    evil = tmp_path / "evil.py"
    evil.write_text("num_classes = 3\nimport os\n")
    fails(capsys, "swap", swap_flags(known, "-c", str(evil), *out), "line 2")
    other = tmp_path / "other.py"
    other.write_text("num_classes = 7\nbackbone = 'tiny'\nhidden_dim = 32\nnheads = 4\n")
    fails(capsys, "swap", swap_flags(known, "-c", str(other), *out), "checkpoint has 3 classes, the config wants 7")
    other.write_text("num_classes = 3\nbackbone = 'resnet50'\n")
    fails(capsys, "swap", swap_flags(known, "-c", str(other), *out), "checkpoint")
    bad = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [95, 0, 30, 10], "iscrowd": 0}
    fails(capsys, "swap", swap_flags(known, "--data", str(coco_folder(tmp_path / "bad", [bad])), *out), "box outside")


def test_a_base_that_finds_nothing_or_misnames_is_refused_before_anything_is_written(known, capsys, tmp_path):
    flags = [flag for flag in swap_flags(known, "--output-dir", str(tmp_path / "out")) if flag != "--allow-chance"]
    fails(capsys, "swap", flags, "3 known classes")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(known):
    """The folder of a finished swap."""
    folder = known["root"] / "run"
    assert started("swap", swap_flags(known, "--output-dir", str(folder), "--no-report")) == 0
    return folder


def last_scores(folder):
    """{group: line} at the end of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["group"]: line for line in lines if "score" in line}


def test_a_run_is_scored_again(finished, capsys, tmp_path):
    last, curves = last_scores(finished), tmp_path / "curves.svg"
    capsys.readouterr()
    assert started("evaluate", [str(finished), "--json", "--curves", str(curves), "--eval-batch", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == set(last) and found["metric"] == "map"
    for group, line in last.items():
        assert found["scores"][group]["total"] == pytest.approx(line["score"], abs=0.2)
        assert set(found["figures"][group]) == {"AP50", "AP75"}
    drawn = ElementTree.parse(curves).getroot()
    names = [g[0].text.partition(",")[0] for g in drawn.iter(f"{SVG}g") if g.get("class") == "name"]
    assert set(last) <= {text.text for text in drawn.iter(f"{SVG}text")}
    assert names == [c for scores in found["scores"].values() for c in scores if c != "total"]
    assert len([path for path in drawn.iter(f"{SVG}path") if path.get("class") == "line"]) == len(names) == 4
    fails(capsys, "evaluate", [str(finished), "--curves", "curves.png"], "must end in .svg")


def test_a_run_finds_objects_in_images(finished, known, capsys, tmp_path):
    images, drawn = known["data"] + "/images", tmp_path / "drawn"
    capsys.readouterr()
    assert started("predict", [str(finished), images, "--threshold", "0", "--output-dir", str(drawn), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 8 and {o["class"] for a in answers for o in a["objects"]} == {"a", "b", "c", "new"}
    for answer in answers:
        scores = [o["score"] for o in answer["objects"]]
        assert scores == sorted(scores, reverse=True)
        with Image.open(answer["file"]) as image, Image.open(drawn / Path(answer["file"]).name) as copy:
            assert copy.size == image.size and copy.tobytes() != image.convert("RGB").tobytes()
    assert started("predict", [str(finished), images, "--threshold", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("  nothing found") for line in lines] == [True] * 8
    fails(capsys, "predict", [str(finished), images, "--threshold", "2"], "`--threshold` is a share, 0 up to 1")


def test_copies_of_a_picture_get_the_same_answer(finished, capsys, tmp_path):
    flags = ["--json", "--threshold", "0"]
    assert_equal_answers(lambda files: started("predict", [str(finished), *files, *flags]), tmp_path / "c", capsys)


def test_predict_names_or_skips_what_is_no_image(finished, known, capsys, tmp_path):
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    fails(capsys, "predict", [str(finished), str(tmp_path)], "half.jpg")
    assert started("predict", [str(finished), str(tmp_path), "--skip-corrupt"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "good.png" in out and "left out" in err and "half.jpg" in err


def test_a_checkpoint_is_scored_on_named_data(known, capsys):
    fails(capsys, "evaluate", [known["checkpoint"]], "Give --data")
    flags = [known["checkpoint"], "--data", known["data"], "--test-size", "64", "--json"]
    capsys.readouterr()
    assert started("evaluate", flags) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]["all"]) == {"total", "a", "b", "c"}
    assert started("evaluate", [*flags, "--classes", "a", "--class-names", "x,a,y"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]["chosen"]) == {"total", "a"}


def test_an_earlier_swap_is_a_base_like_any_other(finished, known, capsys, tmp_path):
    flags = [
        "--checkpoint",
        str(finished),
        "--data",
        known["data"],
        "--forget",
        "a",
        *TINY,
        "--allow-chance",
        "--no-report",
    ]
    assert started("swap", [*flags, "--output-dir", str(tmp_path / "two")]) == 0
    first = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()][:2]
    found = {name: score for line in first for name, score in line["per_class"].items()}
    assert set(found) == {"a", "c", "new"}, "b is forgotten already"
    lines = last_scores(finished).values()
    ended = {name: score for line in lines for name, score in line["per_class"].items() if name in found}
    assert found == pytest.approx(ended, abs=0.2), "it starts where the first swap ended"
    capsys.readouterr()
    assert started("evaluate", [str(tmp_path / "two"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["forget"]["total"] == pytest.approx(last_scores(tmp_path / "two")["forget"]["score"], abs=0.2)


@pytest.mark.parametrize(("kind", "dtype"), [("official", torch.float32), ("official-half", torch.float16)])
def test_an_exported_run_is_one_file_with_adapters_merged(finished, known, capsys, tmp_path, kind, dtype):
    file = tmp_path / "swapped.pth"
    assert started("export", [str(finished), str(file), "--format", kind]) == 0
    state = torch.load(file, weights_only=True)["model"]
    assert not [name for name in state if "lora" in name] and state["class_embed.0.weight"].dtype == dtype
    scores = []
    for place in (finished, file):
        capsys.readouterr()
        assert (
            started(
                "evaluate",
                [
                    str(place),
                    "--data",
                    known["data"],
                    "--test-size",
                    "64",
                    "--longest",
                    "96",
                    "--classes",
                    "a,b,c,new",
                    "--json",
                ],
            )
            == 0
        )
        scores.append(json.loads(capsys.readouterr().out)["scores"]["chosen"])
    assert scores[1] == pytest.approx(scores[0], abs=0.5)


def test_a_frozen_backbone_stays_and_its_maps_are_cached(known, capsys, tmp_path):
    maps = str(tmp_path / "maps")
    flags = [
        "--checkpoint",
        known["checkpoint"],
        "--data",
        known["data"],
        "--classes",
        "a,b,c",
        "--feature-cache",
        maps,
    ]
    flags += [*TINY[: TINY.index("--lora-rank")], "--gallery", "0", "--no-report"]
    assert started("pretrain", [*flags, "--output-dir", str(tmp_path / "free")]) == 0
    assert not (tmp_path / "maps").exists(), "a backbone that trains is not kept"
    assert started("pretrain", [*flags, "--freeze-backbone", "--output-dir", str(tmp_path / "out")]) == 0
    before, after = base().state_dict(), SESSION.load(tmp_path / "out", {}).base.model.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("backbone.")} <= same and "class_embed.weight" not in same
    assert list((tmp_path / "maps").rglob("*.bin"))


def test_check_tells_good_from_bad(known, capsys, tmp_path):
    assert started("check", [known["data"]]) == 0
    assert "8 training and 8 test images" in capsys.readouterr().out
    bad = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [95, 0, 30, 10], "iscrowd": 0}
    assert started("check", [str(coco_folder(tmp_path / "bad", [bad]))]) == 2
    assert "box outside" in capsys.readouterr().out


def test_pretrain_writes_a_checkpoint_that_knows_its_classes(known, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "backbone = 'tiny'\nhidden_dim = 32\nnheads = 4\ndim_feedforward = 48\nenc_layers = 1\ndec_layers = 2\n"
        "num_queries = 20\nnum_select = 20\ndn_number = 5\n"
    )
    flags = ["--data", known["data"], "--classes", "a,b", "-c", str(config), *TINY[:-4], "--no-report", "--half"]
    assert started("pretrain", [*flags, "--output-dir", str(tmp_path / "run")]) == 0
    model = ks_detection.load_checkpoint(tmp_path / "run" / "model" / "model.pth")
    assert model.class_table.names == ("a", "b") and model.class_table.ids == (0, 1)
    assert next(model.parameters()).dtype == torch.float32


def test_three_folders_name_their_groups(known, tmp_path):
    coco = coco_folder(tmp_path / "coco")
    data, implied = open_data(SourceConfig(learn_data=known["data"], forget_data=str(coco), retain_data=str(coco)))
    assert implied == {"learn": "a,b,c,new", "forget": "cat,dog", "retain": "cat,dog"} and len(data.train) == 10


@pytest.mark.parametrize(
    ("name", "order"), [("swapping_fltf_ddp", ["learn", "forget"]), ("swapping_fftl_ddp", ["forget", "learn"])]
)
def test_published_scripts_run_in_their_order(name, order, known, monkeypatch, tmp_path):
    argv = swap_flags(known, "--output_dir", str(tmp_path), "--no-report", "--find_unused_params")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *argv])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    assert [action for action, _ in read_json(tmp_path / "config.json")["identity"]["plan"]["steps"]] == order


@pytest.fixture(scope="module")
def deformable(known, tmp_path_factory):
    """A Deformable DETR that pretrain.py made of a config file; it knows a, b, c and new."""
    root = tmp_path_factory.mktemp("deformable")
    config = root / "tiny.py"
    config.write_text(
        "modelname = 'deformable_detr'\nbackbone = 'tiny'\nhidden_dim = 32\nnheads = 4\ndim_feedforward = 48\n"
        "enc_layers = 1\ndec_layers = 2\nnum_queries = 20\nnum_select = 20\ndropout = 0.0\n"
    )
    flags = ["--data", known["data"], "-c", str(config), *TINY[:-4], "--no-report", "--output-dir", str(root / "run")]
    assert started("pretrain", flags) == 0
    return {"checkpoint": str(root / "run"), "data": known["data"]}


@pytest.mark.parametrize("method", ["gs_lora", "rehearsal", "gradient_ascent", "ewc"])
def test_deformable_detr_forgets_task_after_task(method, deformable, capsys, tmp_path):
    folder = tmp_path / "run"
    flags = ["--resume", deformable["checkpoint"], "--coco_path", deformable["data"], "--no_aux_loss",
             "--num_of_first_cls", "2", "--cls_per_phase", "1", "--num_tasks", "2", "--seed_cls", "123",
             *TINY, "--allow-chance", "--steps", "12", "--lr", "1e-2", "--method", method, "--no-report", "--output-dir", str(folder)]  # fmt: skip
    if method == "gs_lora":
        flags += ["--no-bound-per-item", "--forget-part", "class", "--bound", "15", "--cl_beta_list", "5", "5"]
    assert started("swap", flags) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines if "score" in line] == ["retain", "forget1", "forget2"] * 3
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    first = [line for line in steps if line["phase"] == 1]
    term, sign = {"gs_lora": ("bounded", -1), "gradient_ascent": ("target", 1)}.get(method, ("keep", -1))
    assert sign * (first[-1][term] - first[0][term]) > 0
    assert (folder / ("adapter" if method == "gs_lora" else "model")).is_dir()
    capsys.readouterr()
    assert started("evaluate", [str(folder), "--json", "--eval-batch", "8"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    last = {line["group"]: line["score"] for line in lines if "score" in line}
    assert {group: found["total"] for group, found in scores.items()} == pytest.approx(last, abs=0.2)
    assert started("predict", [str(folder), deformable["data"] + "/images", "--threshold", "0"]) == 0


def test_a_hugging_face_folder_is_scored_and_predicts(known, capsys, tmp_path):
    from tiny_deformable import theirs

    model = theirs()
    model.config.id2label = dict(enumerate(("N/A", "a", "b", "c", "new")))
    model.save_pretrained(tmp_path)
    assert started("evaluate", [str(tmp_path), "--data", known["data"], "--test-size", "64", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert set(scores["all"]) == {"total", "a", "b", "c", "new"}
    flags = [str(tmp_path), known["data"] + "/images", "--threshold", "0", "--test-size", "64", "--json"]
    assert started("predict", flags) == 0
    answers = json.loads(capsys.readouterr().out)
    assert {o["class"] for a in answers for o in a["objects"]} <= {"N/A", "a", "b", "c", "new"} and len(answers) == 8


def test_bad_numbers_of_a_forgetting_plan_are_one_line(deformable, capsys, tmp_path):
    flags = ["--checkpoint", deformable["checkpoint"], "--data", deformable["data"], *TINY]
    flags += ["--output-dir", str(tmp_path / "x")]
    fails(capsys, "swap", [*flags, "--num_of_first_cls", "9"], "do not fit 4 classes")
    fails(capsys, "swap", [*flags, "--num_of_first_cls", "2", "--forget", "a"], "leave out --plan")
    fails(capsys, "swap", flags, "what shall change?")
    flags += ["--forget", "a"]
    fails(capsys, "swap", [*flags, "-c", str(FOLDER / "configs" / "digits.py")], "holds a deformable_detr")
    fails(capsys, "swap", [*flags, "--options", "colour=red"], "has no `colour`")
    other = tmp_path / "other.py"
    other.write_text("modelname = 'yolo'\n")
    fails(capsys, "swap", [*flags, "-c", str(other)], "`modelname` is 'yolo'")
    assert not (tmp_path / "x").exists()
