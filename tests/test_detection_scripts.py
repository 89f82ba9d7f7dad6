"""The scripts of detection: bad input is one line and exit code 2; evaluate and predict repeat a run's numbers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from ks_detection.checkpoints.export import export_official
from ks_detection.published import tidy
from ks_detection.session import load_run
from PIL import Image
from test_detection_data import coco_folder
from tiny_swap import base, pictures

from common import cli

FOLDER = Path(__file__).parent.parent / "object-detection"
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


def script(name: str):
    """A script as a module; three domains have scripts of the same name, so none is imported by name."""
    spec = importlib.util.spec_from_file_location(f"detection_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        for thing in picture.things:
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
    return [*flags, *TINY, *more]


def fails(capsys, run, argv, message):
    assert cli.main(run, argv) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0], error


def test_bad_input_is_one_line_and_exit_code_two(known, capsys, tmp_path):
    run = script("swap").run
    out = ["--output-dir", str(tmp_path / "out")]
    fails(capsys, run, swap_flags(known, "--learn", "zebra", *out), "zebra")
    fails(capsys, run, swap_flags(known, "--checkpoint", "none.pth", *out), "no such file")
    fails(capsys, run, swap_flags(known, "--bogus", "1", *out), "--bogus")
    fails(capsys, run, swap_flags(known, "--sizes", "big", *out), "--sizes")
    evil = tmp_path / "evil.py"
    evil.write_text("num_classes = 3\nimport os\n")
    fails(capsys, run, swap_flags(known, "-c", str(evil), *out), "line 2")
    other = tmp_path / "other.py"
    other.write_text("num_classes = 7\nbackbone = 'tiny'\nhidden_dim = 32\nnheads = 4\n")
    fails(capsys, run, swap_flags(known, "-c", str(other), *out), "checkpoint has 3 classes, the config wants 7")
    other.write_text("num_classes = 3\nbackbone = 'resnet50'\n")
    fails(capsys, run, swap_flags(known, "-c", str(other), *out), "checkpoint")
    bad = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [95, 0, 30, 10], "iscrowd": 0}
    fails(capsys, run, swap_flags(known, "--data", str(coco_folder(tmp_path / "bad", [bad])), *out), "box outside")


def test_a_run_is_scored_again_and_predicts(known, capsys, tmp_path):
    folder = tmp_path / "run"
    assert cli.main(script("swap").run, swap_flags(known, "--output-dir", str(folder), "--no-report")) == 0
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "score" in line][-3:]
    capsys.readouterr()
    curves = tmp_path / "curves.png"
    assert cli.main(script("evaluate").run, [str(folder), "--json", "--curves", str(curves), "--eval-batch", "8"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    for line in last:
        assert scores[line["group"]]["ap"] == pytest.approx(line["score"], abs=0.2)
    with Image.open(curves) as image:
        assert image.size[0] > 100
    images = known["data"] + "/images"
    flags = [str(folder), images, "--threshold", "0.0", "--output-dir", str(tmp_path / "drawn")]
    assert cli.main(script("predict").run, flags) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 8 and {o["class"] for a in answers for o in a["objects"]} <= {"a", "b", "c", "new"}
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 8


def test_a_frozen_backbone_stays_and_its_maps_are_cached(known, capsys, tmp_path):
    run, maps = script("pretrain").run, str(tmp_path / "maps")
    flags = [
        "--checkpoint",
        known["checkpoint"],
        "--data",
        known["data"],
        "--classes",
        "a,b,c",
        "--cache-features",
        maps,
    ]
    flags += [*TINY[: TINY.index("--lora-rank")], "--gallery", "0", "--no-report"]
    fails(capsys, run, [*flags, "--output-dir", str(tmp_path / "free")], "--freeze-backbone")
    assert cli.main(run, [*flags, "--freeze-backbone", "--output-dir", str(tmp_path / "out")]) == 0
    before, after = base().state_dict(), load_run(tmp_path / "out")[0].state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("backbone.")} <= same and "class_embed.weight" not in same
    assert list((tmp_path / "maps").rglob("*.pt"))


def test_check_tells_good_from_bad(known, capsys, tmp_path):
    assert cli.main(script("check").run, ["--data", known["data"]]) == 0
    assert "8 training and 8 test pictures" in capsys.readouterr().out
    bad = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [95, 0, 30, 10], "iscrowd": 0}
    assert cli.main(script("check").run, ["--data", str(coco_folder(tmp_path / "bad", [bad]))]) == 1
    assert "box outside" in capsys.readouterr().out


def test_pretrain_writes_a_checkpoint_that_knows_its_classes(known, tmp_path):
    import ks_detection

    config = tmp_path / "tiny.py"
    config.write_text(
        "backbone = 'tiny'\nhidden_dim = 32\nnheads = 4\ndim_feedforward = 48\nenc_layers = 1\ndec_layers = 2\n"
        "num_queries = 20\nnum_select = 20\ndn_number = 5\n"
    )
    flags = ["--data", known["data"], "--classes", "a,b", "-c", str(config), *TINY[:-4], "--no-report", "--half"]
    assert cli.main(script("pretrain").run, [*flags, "--output-dir", str(tmp_path / "run")]) == 0
    model = ks_detection.load_checkpoint(tmp_path / "run" / "model" / "model.pth")
    assert model.class_table.names == ("a", "b") and model.class_table.ids == (0, 1)
    assert next(model.parameters()).dtype == torch.float32


def test_published_command_lines_are_understood(capsys):
    published = (
        "-c config.py --options dn_scalar=100 dn_box_noise_scale=1.0 --pretrain_model_path x.pth --lora_rank 8 "
        "--lora_pos FFN --remain_path r --forget_path f --learn_path l --output_dir o --save_log --find_unused_params --amp"
    )
    assert tidy(published.split()) == (
        ["--config-file", "config.py"]
        + [
            "--checkpoint",
            "x.pth",
            "--lora-rank",
            "8",
            "--retain-data",
            "r",
            "--forget-data",
            "f",
            "--learn-data",
            "l",
            "--output-dir",
            "o",
        ]
        + ["--precision", "fp16", "--options", "dn_scalar=100 dn_box_noise_scale=1.0"]
    )
    assert "--save_log" in capsys.readouterr().err


def test_three_folders_name_their_groups(known, tmp_path):
    from ks_detection.session import SourceConfig, open_data

    coco = coco_folder(tmp_path / "coco")
    data, implied = open_data(SourceConfig(learn_data=known["data"], forget_data=str(coco), retain_data=str(coco)))
    assert implied == {"learn": "a,b,c,new", "forget": "cat,dog", "retain": "cat,dog"} and len(data.train) == 10


def test_published_script_names_are_there():
    for name, order in (("swapping_fltf_ddp", "fltf"), ("swapping_fftl_ddp", "fftl")):
        assert f'main("{order}")' in (FOLDER / f"{name}.py").read_text()
    assert sys.modules.get("swap") is None


def test_plans_on_coco_have_the_published_class_order():
    from ks_detection.cl_detr import ForgettingConfig, forgetting_plan
    from ks_detection.coco_names import COCO

    from common.plan import PlanConfig, read_plan

    names = [COCO[number] for number in sorted(COCO)]
    numbers = {name: number for number, name in COCO.items()}
    plan = read_plan(FOLDER / "configs" / "plans" / "gs_lora_coco_7x10.yaml", names)
    assert [numbers[name] for name in plan.groups["forget1"]] == [78, 41, 28, 52, 37, 84, 53, 63, 19, 76]
    assert [numbers[name] for name in plan.groups["retain"]] == [74, 64, 65, 5, 79, 59, 36, 88, 9, 49]
    assert len(plan.phases) == 7 and len(plan.phases[0].keep) == 70
    flags = ForgettingConfig(num_of_first_cls=70, cls_per_phase=10, num_tasks=7, seed_cls=123)
    assert forgetting_plan(flags, PlanConfig(), names).phases == plan.phases
    single = read_plan(FOLDER / "configs" / "plans" / "gs_lora_coco_80_10.yaml", names)
    assert single.groups["forget"] == plan.groups["forget1"] and len(single.phases) == 1
    assert forgetting_plan(ForgettingConfig(num_of_first_cls=70), PlanConfig(), names).phases == single.phases
    assert forgetting_plan(ForgettingConfig(), PlanConfig(), names) is None


def test_every_shipped_config_builds_and_the_published_settings_parse():
    from ks_detection.detectors import CONFIGS, config_from
    from ks_detection.dino.config_file import read_config

    kinds = {config_from(read_config(path)).modelname for path in (FOLDER / "configs").glob("*.py")}
    assert kinds == set(CONFIGS)
    flags = ["--config", str(FOLDER / "configs" / "cl_detr.yaml")]
    args = cli.swap_parser("swap.py", "", detection_configs(), flags).parse_args(flags)
    assert (args.bound, args.sparsity_weight, args.forget_part, args.lora_alpha) == (15, 3e-4, "class", 1)
    for method in ("rehearsal", "gradient_ascent", "ewc", "mas", "l2"):  # flags of the file's own method are left out
        others = [*flags, "--method", method, "--num-tasks", "1"]
        args = cli.swap_parser("swap.py", "", detection_configs(), others).parse_args(others)
        assert args.mixed == "remove" and args.num_tasks == 1 and not hasattr(args, "bound")


def detection_configs():
    from ks_detection.cl_detr import ForgettingConfig
    from ks_detection.domain import PictureConfig
    from ks_detection.session import SourceConfig

    return SourceConfig, PictureConfig, ForgettingConfig


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
    assert cli.main(script("pretrain").run, flags) == 0
    return {"checkpoint": str(root / "run"), "data": known["data"]}


@pytest.mark.parametrize("method", ["gs_lora", "rehearsal", "gradient_ascent", "ewc"])
def test_deformable_detr_forgets_task_after_task(method, deformable, capsys, tmp_path):
    folder = tmp_path / "run"
    flags = ["--resume", deformable["checkpoint"], "--coco_path", deformable["data"], "--no_aux_loss",
             "--num_of_first_cls", "2", "--cls_per_phase", "1", "--num_tasks", "2", "--seed_cls", "123",
             *TINY, "--steps", "12", "--lr", "1e-2", "--method", method, "--no-report", "--output-dir", str(folder)]  # fmt: skip
    if method == "gs_lora":
        flags += ["--no-bound-per-item", "--forget-part", "class", "--bound", "15", "--cl_beta_list", "5", "5"]
    assert cli.main(script("swap").run, flags) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines if "score" in line] == ["retain", "forget1", "forget2"] * 3
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    first = [line for line in steps if line["phase"] == 1]
    term, sign = {"gs_lora": ("bounded", -1), "gradient_ascent": ("target", 1)}.get(method, ("keep", -1))
    assert sign * (first[-1][term] - first[0][term]) > 0
    assert (folder / ("adapter" if method == "gs_lora" else "model")).is_dir()
    capsys.readouterr()
    assert cli.main(script("evaluate").run, [str(folder), "--json", "--eval-batch", "8"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    last = {line["group"]: line["score"] for line in lines if "score" in line}
    assert {group: found["ap"] for group, found in scores.items()} == pytest.approx(last, abs=0.2)
    assert cli.main(script("predict").run, [str(folder), deformable["data"] + "/images", "--threshold", "0"]) == 0


def test_a_hugging_face_folder_is_scored_and_predicts(known, capsys, tmp_path):
    from tiny_deformable import theirs

    model = theirs()
    model.config.id2label = dict(enumerate(("N/A", "a", "b", "c", "new")))
    model.save_pretrained(tmp_path)
    assert (
        cli.main(script("evaluate").run, [str(tmp_path), "--data", known["data"], "--test-size", "64", "--json"]) == 0
    )
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert set(scores["all"]["per_class"]) == {"a", "b", "c", "new"}
    flags = [str(tmp_path), known["data"] + "/images", "--threshold", "0", "--test-size", "64"]
    assert cli.main(script("predict").run, flags) == 0
    answers = json.loads(capsys.readouterr().out)
    assert {o["class"] for a in answers for o in a["objects"]} <= {"N/A", "a", "b", "c", "new"} and len(answers) == 8


def test_bad_numbers_of_a_forgetting_plan_are_one_line(deformable, capsys, tmp_path):
    flags = [
        "--checkpoint",
        deformable["checkpoint"],
        "--data",
        deformable["data"],
        *TINY,
        "--output-dir",
        str(tmp_path / "x"),
    ]
    run = script("swap").run
    fails(capsys, run, [*flags, "--num_of_first_cls", "9"], "do not fit 4 classes")
    fails(capsys, run, [*flags, "--num_of_first_cls", "2", "--forget", "a"], "leave out --plan")
    fails(capsys, run, [*flags, "-c", str(FOLDER / "configs" / "digits.py")], "holds a deformable_detr")
    fails(capsys, run, [*flags, "--options", "colour=red"], "has no `colour`")
    other = tmp_path / "other.py"
    other.write_text("modelname = 'yolo'\n")
    fails(capsys, run, [*flags, "-c", str(other)], "`modelname` is 'yolo'")
    assert not (tmp_path / "x").exists()
