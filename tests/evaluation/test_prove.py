"""`prove`, end to end on tiny models: what it writes, says and refuses, and what it does not do twice."""

import json
import shutil
from functools import partial

import ks_classification
import pytest
from colours import save_folders
from ks_classification.session import SESSION

from common import commands
from common.errors import UserError
from common.evaluation import retrained, verdict
from common.evaluation.attacks import relearn
from common.jobs import Job, carry_out
from common.report import proof as page

HERE = ["--precision", "fp32", "--device", "cpu", "--threads", "1", "--gallery", "0", "--no-report"]
MODEL = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "8", "--model-args", "embed_dim=32,depth=2,num_heads=2"]  # fmt: skip
KNOWN = ["red", "green", "blue", "black"]


def started(name, *argv):
    return commands.main(SESSION, name, list(map(str, argv)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model of four colours and a run that forgets one of them, proved with two references."""
    root = tmp_path_factory.mktemp("proof")
    data = save_folders(root / "data", [*KNOWN, "white"])
    base = ["--classes", ",".join(KNOWN), "--epochs", "3", "--batch-size", "8", "--lr", "3e-3"]
    assert started("pretrain", "--data", data, *MODEL, *HERE, *base, "--output-dir", root / "base") == 0
    swap = ["--data", data, "--checkpoint", root / "base", "--learn", "white", "--forget", "red", "--epochs", "1"]
    swap += ["--batch-size", "6", "--lora-rank", "2", "--allow-chance"]
    assert started("swap", *swap, *HERE, "--output-dir", root / "run") == 0
    shutil.copytree(root / "run", root / "bare")
    assert started("prove", root / "run", "--references", "2", "--jobs", "1", "--device", "cpu") == 0
    return root


def references(base):
    """The folders of the models that a proof trained beside a base model."""
    return sorted((base / "references").glob("*/seed*/"))


def proved(folder):
    return json.loads((folder / "proof.json").read_text())


def test_the_record_holds_every_number_with_its_interval(place):
    found = proved(place / "run")
    assert found["schema"] == 1 and found["forgotten"] == ["red"] and found["domain"] == "classification"
    assert {f["attack"] for f in found["figures"]} == {
        "output",
        "membership",
        "probe",
        "prototype",
        "relearn",
        "weights",
    }
    for figure in found["figures"]:
        assert figure["unit"] and figure["n"] > 0, figure
        for e in (figure["original"], figure["result"], *figure["references"]):
            assert e["n"] == figure["n"] and e["low"] - 1e-9 <= e["value"] <= e["high"] + 1e-9, figure
        assert (figure["leak"] is None) == bool(figure["no_leak"])
    assert set(found["not_run"]) == {"rmia", "radius"} and all(found["not_run"].values())
    assert list(found["sha256"]["base"]) == ["model/model.safetensors"]
    assert list(found["sha256"]["result"]) == ["adapter/adapter_model.safetensors"]
    assert found["sha256"]["data"]["items"] == 45 and len(found["sha256"]["references"]) == 2


def test_references_never_saw_the_class_and_learned_all_others(place):
    found = references(place / "base")
    assert [folder.name for folder in found] == ["seed1", "seed2"]
    for seed, folder in enumerate(found, 1):
        config = json.loads((folder / "config.json").read_text())
        assert sorted(config["identity"]["plan"]["groups"]["base"]) == ["black", "blue", "green", "white"]
        assert config["flags"]["seed"] == seed and config["identity"]["train"]["epochs"] == 3


def test_references_lie_where_every_run_of_the_base_looks(place):
    base = json.loads((place / "base/config.json").read_text())["flags"]
    classes = ["green", "blue", "black", "white"]

    def asked(flags, classes=classes):
        return retrained.References(SESSION, [flags], classes, ["red"], place / "base", place / "run").place

    assert asked(base) == references(place / "base")[0].parent
    other = {**base, "seed": 7, "output_dir": "elsewhere", "device": "cuda"}
    assert asked(other) == asked(base)
    assert asked(base, classes[:3]) != asked(base) != asked({**base, "lr": 1.0})


def test_a_recipe_of_two_runs_is_followed_run_by_run(place, tmp_path):
    """What a file beside shipped weights says is what a run's own record would say, and the second run goes on."""
    words = ["--data", place / "data", *MODEL, *HERE, "--classes", "red,green", "--epochs", "1", "--batch-size", "8"]
    found = {"commands": [" ".join(map(str, words))] * 2, "classes": ["red", "green"]}
    (tmp_path / "base.pth").touch()
    (tmp_path / "runs").mkdir()
    assert (
        retrained.recipe(SESSION, tmp_path / "base.pth")[1]
        == f"nothing records how {tmp_path / 'base.pth'} was trained"
    )
    (tmp_path / "base.recipe.json").write_text(json.dumps(found))
    recipe, reason = retrained.recipe(SESSION, tmp_path / "base.pth")
    assert not reason and [flags["data"] for flags in recipe.stages] == [str(place / "data")] * 2
    rows = retrained.References(
        SESSION, recipe.stages, ["green"], ["red"], tmp_path / "base.pth", tmp_path / "runs/run"
    )
    ((first, second),) = rows.rows(1)
    assert "--checkpoint" not in first.words and second.words[second.words.index("--checkpoint") + 1] == str(
        first.folder
    )
    assert second.folder == rows.place / "seed1" and rows.place.parent == tmp_path / "runs/references"
    (tmp_path / "base.recipe.json").write_text(json.dumps(found | {"commands": ["--no-such-flag"]}))
    with pytest.raises(UserError, match="no-such-flag"):
        retrained.recipe(SESSION, tmp_path / "base.pth")


@pytest.mark.slow
def test_a_reference_of_its_own_process_equals_one_of_this(place, tmp_path):
    base = json.loads((place / "base/config.json").read_text())["flags"]
    classes = ["green", "blue", "black", "white"]
    found = retrained.References(SESSION, [base], classes, ["red"], tmp_path, tmp_path)
    ((row,),) = found.rows(1)
    job = Job(row.name, partial(retrained.train, SESSION, row), tmp_path / "log.txt")
    carry_out([job], 2, print, print)
    mine, theirs = (f / "model/model.safetensors" for f in (row.folder, references(place / "base")[0]))
    assert mine.read_bytes() == theirs.read_bytes()


def test_two_references_and_three_images_are_inconclusive(place):
    found = proved(place / "run")
    assert [v["level"] for v in found["verdicts"]][0] == "reversible"
    assert found["verdicts"][-1]["level"] in ("inconclusive", "suppressed")
    few, one = found["warnings"]
    assert few == "Few test items, so that intervals are wide: red (3)." and "2, where 3 are needed" in one
    assert not any(f["above"] or f["leak"] for f in found["figures"] if f["kept"])
    assert {f["attack"] for f in found["figures"] if f["kept"]} == {"output", "prototype"}
    text = json.dumps(found["verdicts"]).lower()
    assert not any(word in text for word in ("proven", "deleted", "compliant"))


def test_a_second_proof_attacks_nothing_again(place, monkeypatch):
    before = proved(place / "run")

    def refuse(*given, **named):
        raise AssertionError("attacked again")

    monkeypatch.setattr(relearn, "relearn", refuse)
    monkeypatch.setattr(retrained.trainer, "train", refuse)
    assert started("prove", place / "run", "--references", "2", "--jobs", "1", "--device", "cpu") == 0
    assert proved(place / "run")["figures"] == before["figures"]


def test_without_references_the_proof_is_inconclusive(place, capsys):
    assert started("prove", place / "bare", "--references", "0", "--device", "cpu") == 0
    assert "No clean reference: none was wanted" in capsys.readouterr().out
    found = proved(place / "bare")
    assert found["not_run"]["membership"] == "no reference" and not any(f["leak"] for f in found["figures"])
    assert "not run" in (place / "bare/proof.html").read_text()


def test_given_references_must_not_have_seen_the_class(place, capsys):
    assert started("prove", place / "bare", "--reference-runs", place / "base") == 2
    assert "has seen class 'red'" in capsys.readouterr().err
    assert started("prove", place / "bare", "--reference-runs", place) == 2
    assert "is no run" in capsys.readouterr().err


def test_membership_is_asked_of_models_that_used_other_pictures(place, capsys):
    half = [
        "--classes",
        ",".join(KNOWN),
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--learn-fraction",
        "0.5",
        "--seed",
        "9",
    ]
    assert started("pretrain", "--data", place / "data", *MODEL, *HERE, *half, "--output-dir", place / "half") == 0
    bare = ["prove", place / "bare", "--references", "0", "--device", "cpu", "--shadow-runs"]
    assert started(*bare, place / "half") == 0
    (figure,) = [f for f in proved(place / "bare")["figures"] if f["attack"] == "rmia"]
    used = json.loads((place / "half/split.json").read_text())["train"]
    members = 6 - sum("red" in name for name in used)
    assert figure["unit"] == "AUC" and figure["parameters"]["members"] == members and figure["n"] == members + 2
    assert 0 <= figure["result"]["value"] <= 1 and "rmia" not in proved(place / "bare")["not_run"]
    assert started(*bare, place / "base") == 2 and "used by all of them" in capsys.readouterr().err
    assert started(*bare, references(place / "base")[0]) == 2 and "does not know class 'red'" in capsys.readouterr().err


def test_a_run_that_forgets_nothing_is_refused(place, capsys):
    assert started("prove", place / "base") == 2
    assert "forgets no class" in capsys.readouterr().err


def test_another_base_is_refused_in_one_line(place, tmp_path, capsys):
    shutil.copytree(references(place / "base")[0], tmp_path / "other")
    assert started("prove", place / "bare", "--references", "0", "--checkpoint", tmp_path / "other") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_same_proof_from_python(place):
    found = ks_classification.load_run(place / "run").prove(references=2, jobs=1, device="cpu")
    assert found["figures"] == proved(place / "run")["figures"]


def test_the_page_escapes_names_and_shows_every_attack(place):
    found = proved(place / "run")
    found["run"] = "<script>"
    text = page.render(found)
    assert (
        "<script>" not in text
        and text.count('<svg class="strip"') == len(found["figures"])
        and '<svg class="chart"' in text
        and "http" not in text.split("</style>")[1]
    )
    assert "Reversible by construction" in text and found["sha256"]["data"]["list"] in text


def test_references_of_fewer_steps_are_said_to_be_weaker():
    assert retrained.shortened({"steps": 300, "epochs": 9}, 0.4) == {"steps": 120, "epochs": 9}
    assert retrained.shortened({"steps": 0, "epochs": 9}, 0.4)["epochs"] == 4
    assert verdict.warnings({"0": 50}, 3, share=1.0) == []
    (told,) = verdict.warnings({"0": 50}, 3, share=0.4)
    assert "40 % of the base model's steps (--reference-share)" in told and "weaker" in told
