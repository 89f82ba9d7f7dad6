"""Detectron2-style configs: what loads, what is refused, and that nothing in a file runs."""

from pathlib import Path

import pytest
import torch
from ks_segmentation.config import load as config_module
from ks_segmentation.config import words as config_words
from ks_segmentation.config.arithmetic import evaluate
from ks_segmentation.config.defaults import DEFAULTS, USED, leaves
from ks_segmentation.config.load import Config, load_config
from ks_segmentation.data.augment import scoring_view, train_view
from ks_segmentation.models.parts.criterion import Criterion
from ks_segmentation.session import SESSION
from tiny_mask2former import RESNET, SWIN, model

from common.errors import UserError
from common.run_flags import run_parser

CONFIGS = Path(__file__).parents[2] / "semantic-segmentation/configs/ade20k/semantic-segmentation"


def write(folder, text, name="c.yaml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads(path):
    assert load_config(path).VERSION == 2


def test_published_values_of_swin_base():
    c = load_config(CONFIGS / "swin/maskformer2_swin_base_IN21k_384_bs16_160k_res640.yaml")
    assert c.MODEL.SWIN.DEPTHS == (2, 2, 18, 2) and c.MODEL.SWIN.WINDOW_SIZE == 12
    assert tuple(range(320, 1281, 64)) == c.INPUT.MIN_SIZE_TRAIN and c.INPUT.CROP.SIZE == (640, 640)
    assert c.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.01 and c.SOLVER.AMP.ENABLED is True


def test_published_values_of_the_swap_config():
    c = load_config(CONFIGS / "swin/maskformer2_swin_base_IN21k_swap.yaml")
    assert (c.MODEL.SEM_SEG_HEAD.NUM_CLASSES, c.MODEL.SEM_SEG_HEAD.LORA_RANK, c.SOLVER.MAX_ITER) == (160, 8, 3500)
    assert (c.LEARN_ALPHA, c.LEARN_BETA, c.FORGET_BND, c.FORGET_BETA) == (0.01, 0.9, 115, 0.2)


def test_a_base_is_overridden_by_the_file_and_the_file_by_words(tmp_path):
    write(tmp_path, "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\nSEED: 3", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}")
    c = load_config(path, ["SEED", "4", "MODEL.WEIGHTS", "x.pth"])
    assert (c.SOLVER.BASE_LR, c.SOLVER.MAX_ITER, c.SEED, c.MODEL.WEIGHTS) == (0.5, 8, 4, "x.pth")


def test_text_is_read_as_the_value_it_spells(tmp_path):
    c = load_config(write(tmp_path, 'DATASETS:\n  TRAIN: ("a", "b")\nSOLVER: {BASE_LR: 1e-3}'))
    assert c.DATASETS.TRAIN == ("a", "b") and c.SOLVER.BASE_LR == 1e-3


def test_a_dumped_config_with_other_architectures_in_it_loads(tmp_path):
    load_config(write(tmp_path, "MODEL: {RPN: {NMS_THRESH: 0.7, DEEP: {A: 1}}, ROI_HEADS: {NAME: X}, MASK_ON: true}"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["SOLVER.BASE_LRR", 1],
            "Non-existent key: SOLVER.BASE_LRR (in the command line). Did you mean SOLVER.BASE_LR?",
        ),
        (["NUM_CLASSES", 1], "Did you mean MODEL.SEM_SEG_HEAD.NUM_CLASSES?"),
        (["SOLVER.BASE_LR"], "has no partner"),
        (["SOLVER.BASE_LR", "fast"], "must be a number"),
        (["SOLVER.MAX_ITER", "1.5"], "must be a whole number"),
        (["SOLVER.AMP.ENABLED", "1"], "must be a True or False"),
        (["MODEL.SWIN", "1"], "is a table of settings"),
        (["MODEL.SWIN.DEPTHS", "2"], "must be a list"),
    ],
)
def test_a_wrong_word_gets_one_clear_line(words, expected):
    with pytest.raises(UserError) as error:
        load_config(None, words)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_typo_in_a_file_names_the_nearest_key(tmp_path):
    with pytest.raises(UserError, match="Did you mean MODEL.SEM_SEG_HEAD.NUM_CLASSES"):
        load_config(write(tmp_path, "MODEL: {SEM_SEG_HEAD: {NUM_CLASSE: 3}}"))


class Reads(Config):
    """A config that notes which settings are read."""

    seen: set[str] = set()

    def __init__(self, tree, prefix=""):
        super().__init__({k: Reads(v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in tree.items()})
        vars(self)["prefix"] = prefix

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if not isinstance(value, dict):
            Reads.seen.add(self.prefix + key)
        return value


def test_used_are_the_settings_that_something_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "_node", Reads)
    monkeypatch.setattr(Reads, "seen", set())
    image, labels = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.long)
    for words in (
        [*SWIN],
        [*RESNET, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", [64]],
        ["MODEL.BACKBONE.NAME", "mobilenet_v2", "TEST.SLIDING_WINDOW", 64],
    ):
        made = model(words)
        made.segment(made.normalise(torch.zeros(1, 3, 96, 96)), [(96, 96)])
    Criterion(made.config)
    train_view(image, labels, made.config.INPUT, seed=0, ignore=255)
    scoring_view(image, made.config.INPUT)
    swap = write(tmp_path, "MODEL: {SEM_SEG_HEAD: {LORA_RANK: 2}}\nSEED: 1\nOUTPUT_DIR: x")
    config_words.stated(["--config-file", str(swap)])
    with pytest.raises(UserError, match="pretrained model is needed"):
        SESSION.base_model({"config_file": str(swap)})
    assert Reads.seen == USED


def test_every_setting_that_fills_a_flag_is_used():
    assert set(config_words.FIELDS) < USED < set(leaves(DEFAULTS))


def parsed(*argv):
    words = SESSION.tidy(argv)
    return run_parser(SESSION, "swap", words).parse_args(words)


def test_words_fill_the_flags_that_mean_the_same(tmp_path):
    plain = write(tmp_path, "SOLVER: {MAX_ITER: 9, BASE_LR: 0.5}")
    words = ["SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.25", "SEED", "3", "OUTPUT_DIR", "out", "FORGET_BND", "4"]
    words += ["SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.IMS_PER_BATCH", "6", "SOLVER.AMP.ENABLED", "False"]
    for start in (["--config-file", str(plain)], []):
        args = parsed(*start, *words)
        assert (args.steps, args.lr, args.seed, args.output_dir, args.bound) == (7, 0.25, 3, "out", 4)
        assert (args.clip, args.batch_size, args.precision, args.bound_per_item) == (0, 6, "fp32", False)
        assert args.weight_decay == parsed().weight_decay and args.opts == words
    args = parsed("--config-file", str(plain), "--steps", "5", *words)
    assert (args.steps, args.lr) == (5, 0.25)
    defaults = write(tmp_path, "steps: 2\nlr: 0.125", "flags.yaml")
    args = parsed("--config", str(defaults), "SOLVER.MAX_ITER", "7")
    assert (args.steps, args.lr) == (7, 0.125)
    swap = CONFIGS / "swin/maskformer2_swin_base_IN21k_swap.yaml"
    args = parsed("--config-file", str(swap), "SOLVER.MAX_ITER", "7", "MODEL.SEM_SEG_HEAD.LORA_RANK", "4")
    assert (args.steps, args.lora_rank, args.lr) == (7, 4, 1e-4)


@pytest.mark.parametrize(
    ("text", "words", "unused"),
    [
        ("VIS_PERIOD: 3\nTEST: {EXPECTED_RESULTS: []}", [], "TEST.EXPECTED_RESULTS, VIS_PERIOD"),
        ("SOLVER: {MAX_ITER: 3}", ["SOLVER.BASE_LR", "1"], "SOLVER.MAX_ITER"),  # no swap config
        ("MODEL: {SEM_SEG_HEAD: {LORA_RANK: 2}}\nSOLVER: {MAX_ITER: 3, OPTIMIZER: SGD}", [], "SOLVER.OPTIMIZER"),
        ("MODEL: {RPN: {A: 1}}", ["--method", "scrub", "FORGET_BND", "2"], "FORGET_BND, MODEL.RPN"),
        ("VERSION: 2\nMODEL: {SWIN: {EMBED_DIM: 32}}", [], None),
    ],
)
def test_settings_without_effect_are_told_in_one_line(text, words, unused, tmp_path, capsys):
    argv = ["--config-file", str(write(tmp_path, text)), *words]
    config_words.tell_unused(vars(parsed(*argv)))
    assert capsys.readouterr().err == (f"settings without effect here: {unused}\n" if unused else "")


HOSTILE = {
    "import os": '!!python/object/apply:os.system ["touch PWNED"]',
    "module": "!!python/module:os",
    "name": "!!python/name:os.system",
    "new": "!!python/object/new:os.system [touch PWNED]",
    "eval import": "!!python/object/apply:eval [\"__import__('os').system('touch PWNED')\"]",
    "eval open": "!!python/object/apply:eval [\"open('PWNED', 'w')\"]",
    "eval attribute": '!!python/object/apply:eval ["().__class__.__bases__"]',
    "eval two arguments": '!!python/object/apply:eval ["1", "2"]',
    "eval lambda": '!!python/object/apply:eval ["(lambda: 1)()"]',
    "exec": '!!python/object/apply:exec ["1"]',
    "foreign tag": "!anything 3",
    "huge power": '!!python/object/apply:eval ["9 ** 9 ** 9"]',
    "huge product": '!!python/object/apply:eval ["99999999999 * 99999999999"]',
    "huge range": '!!python/object/apply:eval ["[x for x in range(10000000000)]"]',
    "nested loops": '!!python/object/apply:eval ["[[[0 for x in range(999)] for x in range(999)] for x in range(999)]"]',
    "list times number": '!!python/object/apply:eval ["[0] * 1000000000"]',
    "many digits": '!!python/object/apply:eval ["round(5, -999999999999)"]',
    "deep brackets": '!!python/object/apply:eval ["' + "(" * 400 + '"]',
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_value_is_refused_and_runs_nothing(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, f"INPUT:\n  MIN_SIZE_TRAIN: {value}\n"))
    assert "\n" not in str(error.value) and not (tmp_path / "PWNED").exists()


def bomb(levels=12):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merge_bomb():
    lines = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [bomb(), merge_bomb(), "a: &a [*a]", "[" * 2000, "- list", "just text", "a: b: c", "\x00", "1: 2", "{? [1]: 2}", "? {a: 1}\n: 2"],
    ids=["aliases", "merges", "itself", "deep", "a list", "text", "broken", "zero byte", "number key", "list key", "table key"],
)  # fmt: skip
def test_a_hostile_file_gets_one_clear_line(text, tmp_path):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_base_that_leads_back_is_refused(tmp_path):
    write(tmp_path, "_BASE_: b.yaml", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml", "b.yaml")
    with pytest.raises(UserError, match="leads back"):
        load_config(tmp_path / "a.yaml")


def test_bases_that_multiply_are_refused(tmp_path):
    for i in range(15):
        write(tmp_path, f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]", f"{i}.yaml")
    write(tmp_path, "SEED: 1", "15.yaml")
    with pytest.raises(UserError, match="more than 20 files"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize("base", ["http://example.org/x.yaml", "nowhere.yaml", "/dev/zero", "[3]", "{a: 1}"])
def test_a_base_must_be_a_file_here(base, tmp_path):
    with pytest.raises(UserError):
        load_config(write(tmp_path, f"_BASE_: {base}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[int(x * 0.1 * 640) for x in range(5, 21)]", [int(x * 0.1 * 640) for x in range(5, 21)]),
        ("[round(x // 2 - 1 % 3) for x in range(0, 9, 2)]", [round(x // 2 - 1 % 3) for x in range(0, 9, 2)]),
        ("range(3)", [0, 1, 2]),
        ("-(2 + 3) * 4", -20),
        ("[1, 2.5]", [1, 2.5]),
    ],
)
def test_arithmetic_equals_python(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "'a'", "True", "1 if 1 else 2", "1 / 2", "max(1, 2)", "1 // 0", "int", "range(1, 2, 0)"]
)
def test_anything_else_is_no_arithmetic(text):
    with pytest.raises(UserError):
        evaluate(text)
