"""Published command lines of classification turned into ours."""

from pathlib import Path

import pytest
from colours import FOLDER, save_folders
from ks_classification import gs_lora_scripts, published
from ks_classification.session import SESSION

from common.errors import UserError
from common.plan_file import PlanConfig
from common.run_flags import parsed

KNOWN = ["red", "green", "blue", "black"]


def three_roots(root):
    """Folders as the published scripts want them: <row>?<WordNet id> for known classes, plain names for new ones."""
    ids = {c: f"{k}?n0000000{k}" for k, c in enumerate(KNOWN)}
    forget, retain = (
        save_folders(root / n, c, train=20, folder=ids.get) for n, c in (("f", KNOWN[:1]), ("r", KNOWN[1:]))
    )
    return save_folders(root / "l", ["white"]), forget, retain


def test_published_flags_are_translated(tmp_path):
    learn, forget, retain = three_roots(tmp_path)
    argv = f"--learnpath {learn} --forgetpath {forget} --retainpath {retain} -b 80 -w cpu -d casia100 -n VIT -e 5 -head Softmax"
    argv += " --outdir out -r base.pth --warmup-epochs 0 --lr 1e-2 --min-lr 1e-5 --weight_decay 0.05 --lora_rank 8 --vit_depth 12"
    argv += (
        " --BND 105 --beta 0.2 --alpha 0.005 --wandb_group x --sched cosine --opt adamw --decay-epochs 100 --retrain"
    )
    ours, ignored = published.translate(argv.split(), "fftl")
    pairs = dict(zip(ours[1::2], ours[2::2], strict=True))
    assert ours[0] == "--reference" and pairs == {
        "--order": "fftl", "--data": f"{retain},{forget}", "--lr": "1e-2", "--min-lr": "1e-5", "--weight-decay": "0.05",
        "--epochs": "5", "--batch-size": "80", "--bound": "105", "--sparsity-weight": "0.005", "--lora-rank": "8",
        "--output-dir": "out", "--checkpoint": "base.pth", "--learn-data": learn, "--keep-weight": "0.2",
        "--forget-weight": "0.2", "--device": "cpu", "--learn": "white", "--forget": "n00000000",
    }  # fmt: skip
    assert set(ignored) == {"-d", "-n", "-head", "--vit_depth", "--warmup-epochs", "--decay-epochs", "--sched", "--opt", "--wandb_group", "--retrain"}  # fmt: skip


@pytest.mark.parametrize("name", list(gs_lora_scripts.read_yaml(gs_lora_scripts.TABLE)["scripts"]))
def test_every_published_block_is_a_command_of_ours(name):
    assert (FOLDER / "scripts" / f"{name}.py").exists()
    entry, known = gs_lora_scripts.blocks(name)
    assert gs_lora_scripts.command(name, []) == (entry, gs_lora_scripts.as_flags(next(iter(known.values())))), (
        "the first is the default"
    )
    for block in known if entry != "evaluate" else ():
        _, argv = gs_lora_scripts.command(name, [block, "--seed", "7"])
        settings = parsed(SESSION, entry, argv)
        assert settings.train.seed == 7 and settings.train.method == known[block].get("method", settings.train.method)
        assert not settings[PlanConfig].plan or Path(settings[PlanConfig].plan).exists()


def test_the_published_continual_block_has_its_published_numbers():
    settings = gs_lora_scripts.blocks("run_cl_forget")[1]["gs_lora_pp_fewshot"]
    assert (settings["shots"], settings["batch_size"], settings["bound"], settings["prototype_bound"]) == (
        4,
        4,
        105,
        50,
    )
    assert settings["forget_weights"] == "0.3,0.4,0.28,0.2" and settings["lr"] == 0.01 and settings["epochs"] == 100


@pytest.mark.parametrize("name", ["run_forget", "run_cl_forget"])
def test_batches_of_four_are_of_gs_lora_s_few_shot_runs_alone(name):
    """The published baselines of few shots have batches of 48, in one step and in four."""
    sizes = {block: settings["batch_size"] for block, settings in gs_lora_scripts.blocks(name)[1].items()}
    assert sizes.pop("gs_lora_pp_fewshot") == 4 and set(sizes.values()) == {48} and {"ewc", "der", "lirf"} < set(sizes)
    shots = {
        settings.get("shots") for block, settings in gs_lora_scripts.blocks(name)[1].items() if block in ("ewc", "der")
    }
    assert shots == ({4} if name == "run_forget" else {None})


def test_an_unknown_block_lists_the_known_ones():
    with pytest.raises(UserError, match="has no block 'magic'; it has: gs_lora_pp_fewshot, gs_lora_pp, "):
        gs_lora_scripts.command("run_forget", ["magic"])
