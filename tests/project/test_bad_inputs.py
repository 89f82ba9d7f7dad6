"""Inputs that went wrong once, and others of their kinds: each is one line on stderr, exit code 2, and no new file."""

import json
import shutil

import numpy as np
import pytest
import test_detection_scripts
import test_scripts
import test_segmentation_scripts
from PIL import Image
from refusals import CLASSIFICATION, DEEP, SEGMENTATION, SESSIONS, ids_of, offline, refused  # noqa: F401
from test_detection_scripts import finished as detected  # noqa: F401  fixtures
from test_detection_scripts import known  # noqa: F401
from test_scripts import place as classified  # noqa: F401
from test_segmentation_scripts import place, swapped  # noqa: F401

from common import commands
from common.cli import main as command
from common.report.__main__ import body as report

# ---- flags -----------------------------------------------------------------------------------------------------

EVERY = """
--lr 0|--lr -1|--lr nan|--lr inf|--lr 1e300|--lr fast|--lr 1e-3x|--forget-lr -1|--forget-lr inf|--min-lr -1
--epochs 0|--epochs 1.5|--steps -1|--steps x|--steps 1e3|--forget-steps -1|--batch-size 0|--batch-size -3
--batch-size 1000000|--accumulate 0|--accumulate 1000000|--schedule linear|--warmup 1|--warmup -0.1|--warmup nan
--weight-decay -1|--clip -1|--clip nan|--average-decay 1|--precision int8|--device gpu|--device cuda:999|--threads -1
--threads 100000|--seed -1|--seed 12345678901234567890|--seed x|--eval-every -1|--save-every -1|--save-every nan|--gallery -1|--gallery 100000000
--lora-rank 0|--lora-rank -1|--lora-rank 99999|--lora-alpha -1|--lora-alpha inf|--lora-position head|--lora-targets nothing.*
--lora-blocks 99|--lora-blocks x-y|--lora-init zero|--lora-between-phases both|--method nothing|--method ../x|--order xyz
--plan /nonexistent.yaml|--config /nonexistent.yaml|--keep-weight -5|--keep-weight nan|--forget-weight -1|--bound 0|--bound nan
--forget-weights 1,2,x|--forget-weights 1|--forget-weights ,|--num-gpus 0|--num-gpus 100000|--unknown 1|--output-dir /dev/null/x
--learn @/nonexistent|--forget @/nonexistent|--retain nothing|--forget nothing|--learn nothing|--data /nonexistent|--data=
--data .|--checkpoint /nonexistent|--checkpoint .|--workers -1|--workers 100000|--eval-batch 0|--eval-batch -1
--eval-batch 10000000
""".replace("\n", "|").strip("|").split("|")  # fmt: skip
OWN = {
    "classification": """
--img-size -1|--img-size 100000|--patch-size -1|--head-rows 100000000|--head-rows -1|--crop 0|--crop 2|--crop nan|--dropout 1
--dropout -1|--learn-fraction 0|--learn-fraction 2|--learn-fraction nan|--shots -1|--shots 100000|--validation 1|--validation -1
--label-smoothing 1|--views -1|--split /nonexistent|--split .|--normalize x|--face-head x|--model-args x|--feature-cache-gb -1
--stem-weights /nonexistent|--class-names @/nonexistent|--model-args depth=3|--img-size 32|--patch-size 4|--pretrained
--eval-margin|--learn-data /nonexistent|--data cifar10,/nonexistent|--data hf:/nonexistent""",
    "detection": """
--sizes 0|--sizes x|--sizes -1|--sizes 5-1|--sizes 1-2:0|--sizes=|--sizes 480-800:-1|--sizes 1-100000|--longest 0|--longest -1
--longest 1000000|--crop 100,50|--crop 0|--crop x|--before-crop 0|--before-crop x|--test-size -1|--test-size 0|--test-size 999999
--keep-decoded -1|--mixed x|--forget-part x|--feature-cache-gb -1|--learn-fraction 0
--options x|--options a.b.c=1|--config-file /nonexistent.py|-c .|--class-names a|--ema|--num-of-first-cls -1
--num-of-first-cls 2 --seed-cls -1|--num-of-first-cls 99|--learn-data /nonexistent|--forget-data .|--data digits:x""",
    "segmentation": """
--others x|--test-limit -1|--config-file /nonexistent.yaml|--config-file x.txt|--set SOLVER.BASE 1|--set MODEL.WEIGHTS /nonexistent
--set INPUT.MIN_SIZE_TEST 0|--set INPUT.MIN_SIZE_TEST -5|--set INPUT.MIN_SIZE_TRAIN [0]|--set INPUT.MIN_SIZE_TRAIN []
--set INPUT.CROP.SIZE [0,64]|--set INPUT.CROP.SIZE [64]|--set MODEL.PIXEL_STD [1]|--set MODEL.PIXEL_STD [0,1,1]
--set MODEL.PIXEL_MEAN [1]|--set INPUT.FORMAT XYZ|--set TEST.SLIDING_WINDOW 1|--set TEST.SLIDING_WINDOW -1
--set INPUT.MAX_SIZE_TEST 0|--set INPUT.MAX_SIZE_TRAIN 0|--set SOLVER.BASE_LR x|--set NOTHING 1|--data voc:/nonexistent
--data x:.|--data ade20k:.|--data-classes a,b --data digits|--learnsetname voc|--learnsetname x|--learn-data /nonexistent
--class-names a""",
}
PLACES = (
    "--data",
    "--checkpoint",
    "--learn",
    "--forget",
    "--retain",
    "--config",
    "--eval-batch",
    "--workers",
    "--lora-",
)


def flags_of(name):
    """What a domain reads for itself, its own flags, and a third of those that are read in one place for all."""
    own = [flags for flags in EVERY if flags.startswith(PLACES)]
    shared = [flags for flags in EVERY if flags not in own]
    others = [flags for flags in OWN[name].strip().replace("\n", "|").split("|") if flags]
    return [*own, *shared[list(SESSIONS).index(name) :: len(SESSIONS)], *others]


CASES = [(name, flags) for name in SESSIONS for flags in flags_of(name)]


@pytest.fixture
def swap_flags(request):
    """Domain -> the flags of a swap that would run, without those of an output folder."""

    def flags(name):
        if name == "classification":
            return test_scripts.swap_flags(request.getfixturevalue("classified"))
        if name == "detection":
            return test_detection_scripts.swap_flags(request.getfixturevalue("known"))
        words = test_segmentation_scripts.swap_flags(request.getfixturevalue("place"), "out")
        at = words.index("--output-dir")
        return [str(word) for word in (*words[:at], *words[at + 2 :])]

    return flags


@pytest.mark.parametrize("name, flags", CASES, ids=ids_of(CASES))
def test_flags(name, flags, swap_flags, tmp_path, capsys):
    words = [*swap_flags(name), "--output-dir", str(tmp_path / "out"), *flags.split(" ")]
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "swap", words))


# ---- plans and YAML ----------------------------------------------------------------------------------------------

PLANS = [
    "", "[]", "3", "a: &a [1]\nb: [*a", "\x00", "groups: {}", "groups: {a: [red]}\nphases: 3", "groups: 3\nphases: []",
    "groups: {a: [red]}\nphases: []", "groups: {a: [red]}\nphases: [5]", "groups: {a: [red]}\nphases: [{drop: a}]",
    "groups: {a: [red]}\nphases: [{forget: b}]", "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nmissing: 5",
    "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nmissing: [a]", "groups: {a: [red], b: rest}\nphases: [{forget: {a: b}}]",
    "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nname: ../../../x", "groups: {a: [red], b: rest}\nphases: [{forget: a}]\n3: 4\nx: y",
    "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nname: [x]", "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nname: {x: y}",
    "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nkeep_until_forgotten: 5", "when: 2001-99-99",
    "groups: {a: [purple], b: rest}\nphases: [{forget: a}]", "groups: {a: {red: 1}, b: rest}\nphases: [{forget: a}]",
    "groups: {a: [red], b: [red]}\nphases: [{forget: a}]", "groups: {a: [[red]], b: rest}\nphases: [{forget: a}]",
    "groups: {a: [red], b: rest}\nphases: [{learn: a}]",  # the model knows it
    "groups: {a: [white], b: rest}\nphases: [{forget: a}]",  # it does not
    "groups: {a: [red], b: [blue, white]}\nphases: [{forget: a}]",  # it would have to retain one that it does not know
    'groups: {"a\\nb": [red], c: rest}\nphases: [{forget: "a\\nb"}]', "groups: {a: [red], b: rest}\nphases: [{forget: a}]\nname: " + "x" * 300,
    "groups: {" + "a" * 300 + ": [red], b: rest}\nphases: [{forget: " + "a" * 300 + "}]", "groups: {' ': [red], b: rest}\nphases: [{forget: ' '}]",
    "a: " + DEEP, "build: nothing", "build: 5", "build: [x]", "build: continual_forgetting",
    "build: continual_forgetting\nfirst: x\nper_task: 1", "build: continual_forgetting\nfirst: [1]\nper_task: 1",
    "build: continual_forgetting\nfirst: 3\nper_task: 1\nseed: -1\ngenerator: numpy",
    "build: continual_forgetting\nfirst: 3\nper_task: 1\nseed: x", "build: continual_forgetting\nfirst: 3\nper_task: 1\nseed: [1]",
    "build: continual_forgetting\nfirst: 3\nper_task: 1\nclasses: 5", "build: continual_forgetting\nfirst: 3\nper_task: 1\nclasses: {a: b}",
    "build: continual_forgetting\nfirst: 3\nper_task: 1.5", "build: continual_forgetting\nfirst: 3\nper_task: 1\ntasks: -1",
    "build: continual_forgetting\nfirst: 3\nper_task: 1\n5: 6\nx: y", "build: class_incremental\nfirst: 1\nincrement: x",
    "build: class_incremental\nfirst: 1\nincrement: 1\ntasks: x", "build: class_incremental\nfirst: -1\nincrement: 1",
    "build: continual_unlearning\nper_task: 1\ntasks: 2\nrequests: 5", "build: continual_unlearning\nper_task: 1\ntasks: 2\nrequests: {x: 1}",
    "build: continual_unlearning\nper_task: 1\ntasks: 2\nrequests: {1: {a: b}}", "build: continual_unlearning\nper_task: x\ntasks: 2\nrequests: {}",
]  # fmt: skip


@pytest.mark.parametrize("text", PLANS, ids=ids_of(range(len(PLANS))))
def test_plans(text, classified, tmp_path, capsys):  # noqa: F811
    (tmp_path / "plan.yaml").write_text(text)
    flags = ["--data", str(classified / "data"), "--checkpoint", str(classified / "base"), *test_scripts.HERE]
    run = lambda: commands.main(CLASSIFICATION, "swap", [*flags, "--steps", "1", "--plan", str(tmp_path / "plan.yaml")])  # noqa: E731
    refused(capsys, tmp_path, run)


CONFIGS = ["", "[]", "lr: x", "lr: [1]", "lr: {a: b}", "lr: true", "augment: 5", "nothing: 1", "learn: {a: b}", "steps: 2001-01-01",
           "lr: .nan", "lr: .inf", "seed: -1", "batch_size: 1000000", "a: " + DEEP, "!!python/object/apply:os.system [x]",
           "steps: 1\nsteps: 2", "augment: {a: 1, a: 2}", "learn: &a [b, b]\nx: &b [*a, *a, *a]", "\ufeff\x01", "? [a]\n: b", "1: 2", "threads: 100000", 'output_dir: "a\\0b"']  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS, ids=ids_of(range(len(CONFIGS))))
@pytest.mark.parametrize("name", SESSIONS)
def test_files_of_defaults(name, text, swap_flags, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    words = [*swap_flags(name), "--output-dir", str(tmp_path / "out"), "--config", str(tmp_path / "c.yaml")]
    flags = {"lr", "steps", "seed", "batch_size", "threads"}
    for flag in flags:  # given flags would win over the file
        while f"--{flag.replace('_', '-')}" in words:
            at = words.index(f"--{flag.replace('_', '-')}")
            del words[at : at + 2]
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "swap", words))


# ---- run folders --------------------------------------------------------------------------------------------------

RUN_FILES = {
    "config.json": ["", "[]", "null", "{}", "5", '"x"', "{", "\x00\x01", DEEP, '{"identity": 5, "flags": {}}', '{"identity": {"plan": 5}}',
                    '{"identity": {"plan": {"groups": 5}}, "flags": {}}', '{"identity": {"plan": {"groups": {"a": "b"}}}, "flags": {}}',
                    '{"identity": {"plan": {"groups": {}}}, "flags": []}'],
    "adapter/swap.json": ["", "[]", "null", "{}", "{", "\x00", DEEP, '{"rows": 5}', '{"rows": {}, "layers": [], "base": {}, "weights": 1}'],
    "adapter/adapter_model.safetensors": ["", "x", "\x00" * 100, "\x7f" * 8 + "{}"],
}  # fmt: skip
RUN_CASES = [(name, file, text) for name in SESSIONS for file, texts in RUN_FILES.items() for text in texts]


@pytest.fixture
def run_copy(request, tmp_path):
    """Domain -> a copy of a finished run."""
    names = {"classification": "classified", "detection": "detected", "segmentation": "swapped"}

    def copy(name):
        found = request.getfixturevalue(names[name])
        return shutil.copytree(found / "run" if name == "classification" else found, tmp_path / "run")

    return copy


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "a.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return str(path)


@pytest.mark.parametrize("name, file, text", RUN_CASES, ids=ids_of(range(len(RUN_CASES))))
def test_run_folders(name, file, text, run_copy, photo, tmp_path, capsys):
    run = run_copy(name)
    (run / file).write_bytes(text.encode("latin1"))
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "predict", [str(run), photo, "--device", "cpu"]))
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "evaluate", [str(run), "--device", "cpu"]))


FLAGS = [{"data": 5}, {"data": None}, {"data": ["x"]}, {"checkpoint": 5}, {"checkpoint": "/nonexistent"}, {"eval_batch": "x"},
         {"eval_batch": -1}, {"eval_batch": 0}, {"checkpoint": ""}, {"checkpoint": None}, {"eval_batch": None}]  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS, ids=ids_of(FLAGS))
@pytest.mark.parametrize("name", SESSIONS)
def test_recorded_flags_of_another_form(name, flags, run_copy, tmp_path, capsys):
    run = run_copy(name)
    record = json.loads((run / "config.json").read_text())
    record["flags"] |= flags
    (run / "config.json").write_text(json.dumps(record))
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "evaluate", [str(run), "--device", "cpu"]))


@pytest.mark.parametrize("verb", ["predict", "evaluate", "export"])
@pytest.mark.parametrize("name", SESSIONS)
def test_a_result_without_the_record_of_its_run(name, verb, run_copy, photo, tmp_path, capsys):
    run = run_copy(name)
    (run / "config.json").unlink()
    words = [str(run), *{"predict": [photo], "evaluate": [], "export": [str(tmp_path / "x.pth")]}[verb]]
    assert "config.json" in refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], verb, words))


def test_settings_of_a_record_that_are_no_list(run_copy, photo, tmp_path, capsys):
    run = run_copy("segmentation")
    record = json.loads((run / "config.json").read_text())
    record["flags"]["opts"] = 5
    (run / "config.json").write_text(json.dumps(record))
    assert "--set" in refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "predict", [str(run), photo]))


@pytest.mark.parametrize("name", SESSIONS)
def test_a_precision_that_there_is_not_is_told_before_anything_is_read(name, run_copy, tmp_path, capsys):
    run = run_copy(name)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"precision": "x"}))
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "evaluate", [str(run), "--device", "cpu"]))


HOSTILE = [
    ("classification", {"data": "cifar10", "cache_dir": "{}"}), ("classification", {"data": "cifar100", "learn_data": "", "cache_dir": "{}"}),
    ("classification", {"data": "hf:someone/something"}), ("classification", {"checkpoint": "", "model": "vit_tiny_patch16_224", "pretrained": True}),
    ("classification", {"checkpoint": "hf-hub:someone/model"}), ("detection", {"checkpoint": "https://host/model.pth"}),
    ("segmentation", {"config_file": "https://host/x.yaml", "checkpoint": ""}), ("segmentation", {"opts": ["MODEL.WEIGHTS", "https://host/x.pkl"], "checkpoint": ""}),
]  # fmt: skip


@pytest.mark.parametrize("name, flags", HOSTILE, ids=ids_of(HOSTILE))
def test_nothing_is_fetched_or_written_because_a_run_folder_says_so(name, flags, run_copy, tmp_path, capsys):
    run, other = run_copy(name), tmp_path / "elsewhere"
    record = json.loads((run / "config.json").read_text())
    record["flags"] |= {k: v.format(other) if isinstance(v, str) else v for k, v in flags.items()}
    (run / "config.json").write_text(json.dumps(record))
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "evaluate", [str(run), "--device", "cpu"]))
    assert not other.exists()


def test_evaluate_writes_no_cache_where_a_run_folder_says(run_copy, tmp_path):
    run, other = run_copy("segmentation"), tmp_path / "elsewhere"
    record = json.loads((run / "config.json").read_text())
    record["flags"]["cache_dir"] = str(other)
    (run / "config.json").write_text(json.dumps(record))
    assert commands.main(SEGMENTATION, "evaluate", [str(run), "--device", "cpu"]) == 0
    assert not other.exists()


REPORTED = {
    "config.json": ["", "[]", "null", "{}", "\x00", DEEP], "metrics.jsonl": ["\x00\xff\n", "5\n", "[]\n", "{}", '{"score": 1}', DEEP + "\n", '{"group": 5, "score": "x"}'],
    "done.json": ["[]", "5", "{", DEEP, '{"seconds": "x"}'], "gallery.json": ["[]", "5", "{", '{"before": 5}', '{"before": [{}]}'],
}  # fmt: skip
REPORT_CASES = [(file, text) for file, texts in REPORTED.items() for text in texts]


@pytest.mark.parametrize("file, text", REPORT_CASES, ids=ids_of(range(len(REPORT_CASES))))
def test_reports(file, text, run_copy, tmp_path, capsys):
    run = run_copy("classification")
    (run / file).write_bytes(text.encode("latin1"))
    refused(capsys, tmp_path, lambda: command(report, [str(run), "--html", str(tmp_path / "page.html")]))


MODEL_FILES = {
    "spec.json": ["", "[]", "null", "{}", '{"name": "vit_tiny_patch16_224", "size": 0}', '{"name": "vit_tiny_patch16_224", "size": "x"}',
                  '{"name": "hf-hub:a/b"}', '{"name": "vit_tiny_patch16_224", "args": {"checkpoint_path": "x"}}', DEEP, '{"name": "../x"}',
                  '{"name": "vit_tiny_patch16_224", "classes": 5}', '{"name": "vit_tiny_patch16_224", "mean": [1]}'],
    "swap.json": ["", "[]", "{}", '{"tied": 5}', '{"tied": {"a": "b"}}', DEEP],
    "model.safetensors": ["", "x", "\x00" * 64],
}  # fmt: skip
MODEL_CASES = [(file, text) for file, texts in MODEL_FILES.items() for text in texts]


@pytest.mark.parametrize("file, text", MODEL_CASES, ids=ids_of(range(len(MODEL_CASES))))
def test_model_folders(file, text, classified, photo, tmp_path, capsys):  # noqa: F811
    base = shutil.copytree(classified / "base", tmp_path / "base")
    (base / "model" / file).write_bytes(text.encode("latin1"))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", [str(base / "model"), photo]))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", [str(base), photo]))


# ---- pictures ------------------------------------------------------------------------------------------------------


def bad_pictures(folder):
    """Files that are no pictures, or such as must not be decoded."""
    good = folder / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good)
    whole = good.read_bytes()
    good.unlink()
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")
    Image.new("1", (1, 20000)).save(folder / "thin.png")
    Image.new("1", (60000, 1)).save(folder / "long.png")
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    at = whole.find(b"\xff\xc0") + 5  # height and width of a frame
    (folder / "more.jpg").write_bytes(whole[:at] + (13000).to_bytes(2, "big") * 2 + whole[at + 4 :])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folder / "nan.tiff")
    Image.fromarray(np.full((8, 8), -5, np.int32)).save(folder / "negative.tiff")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", SESSIONS)
def test_pictures(name, run_copy, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    run = run_copy(name)
    for file in bad_pictures(tmp_path / "bad"):
        words = [str(run), str(file), "--device", "cpu", "--output-dir", str(tmp_path / "out")]
        assert file.name in refused(
            capsys, tmp_path, lambda words=words: commands.main(SESSIONS[name], "predict", words)
        )


@pytest.mark.parametrize("name", SESSIONS)
def test_thin_pictures_have_answers(name, run_copy, tmp_path, capsys):
    Image.new("RGB", (1, 99)).save(tmp_path / "a.png")
    words = [str(run_copy(name)), str(tmp_path / "a.png"), "--device", "cpu"]
    assert commands.main(SESSIONS[name], "predict", words) == 0, capsys.readouterr().err


def test_a_hidden_file_beside_pictures_is_passed_over(run_copy, photo, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    shutil.copy(photo, tmp_path / "bad" / "a.png")
    (tmp_path / "bad" / "._a.png").write_bytes(b"what a Mac leaves")
    assert (
        commands.main(CLASSIFICATION, "predict", [str(run_copy("classification")), str(tmp_path / "bad"), "--json"])
        == 0
    )
    assert len(json.loads(capsys.readouterr().out)) == 1
