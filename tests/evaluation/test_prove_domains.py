"""`prove` on a tiny detector and a tiny segmenter: the same attacks on matched queries and segments."""

import json

import torch
from test_detection_scripts import finished, known, started  # noqa: F401  # fixtures
from test_segmentation_scripts import call, place, swapped  # noqa: F401  # fixtures

from common.evaluation import answers
from common.evaluation.attacks import relearn

PLACES = {"forgotten items, found under any name", "forgotten items, seen but unnamed"}
NAMED = "forgotten items, found and named"


def read(folder):
    found = json.loads((folder / "proof.json").read_text())
    return found, {f["name"]: f for f in found["figures"]}


def assert_pictures(folder):
    """Every forgotten object of the pictures is shown with what covers it, of the original and of the result."""
    shown = [json.loads(p.read_text()) for p in (folder / "proof/cache").glob("sightings-*.json")]
    assert len(shown) == 2 and all(" is called " in item["answer"] for items in shown for item in items)
    page = (folder / "proof.html").read_text()
    assert "Seen but unnamed" in page and page.count("<img") >= len(shown[0]) > 0


def assert_a_killed_proof_goes_on(prove, folder, monkeypatch):
    """Stopped while it relearns, it is made by the same command, and what was done is not done again."""

    def stop(*given, **named):
        raise KeyboardInterrupt

    before = read(folder)[0]["figures"]
    for path in [*(folder / "proof/cache").glob("relearn-*"), folder / "proof.json"]:
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(relearn, "relearn", stop)
        assert prove() == 130 and not (folder / "proof.json").exists()
        patch.undo()
        patch.setattr(answers, "collect", stop)
        assert prove() == 0 and read(folder)[0]["figures"] == before


def assert_one_line(code, capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines


def assert_few_items_are_told(found):
    """The tiny data have a handful of test items: intervals are wide, and the page says so."""
    (count,) = found["test_items"].values()
    assert count < 10 and found["warnings"][0].startswith("Few test items, so that intervals are wide")
    assert all(f["result"]["high"] - f["result"]["low"] > 0.3 for f in found["figures"] if f["attack"] == "weights")


def test_a_segmenter_is_proved_against_models_that_never_saw_the_class(place, swapped, capsys, monkeypatch):  # noqa: F811
    def prove(*flags):
        return call("prove", swapped, "--jobs", "1", "--cache-dir", "", "--device", "cpu", *flags)

    assert prove("--references", "2") == 0, capsys.readouterr().err
    found, figures = read(swapped)
    assert found["domain"] == "segmentation" and found["forgotten"] == ["a"]
    assert set(figures) >= PLACES and {f["attack"] for f in figures.values()} >= {
        "probe",
        "prototype",
        "relearn",
        "weights",
    }
    assert found["curve"] == "mean IoU (%)" and figures[NAMED]["headline"]
    assert not figures["accuracy, forgotten test items"]["headline"]
    assert_pictures(swapped)
    seen, found_any = (figures[name]["result"]["value"] for name in sorted(PLACES, reverse=True))
    assert seen <= found_any
    assert all(len(f["references"]) == 2 for f in figures.values())
    (config,) = [json.loads(p.read_text()) for p in place.rglob("references/*/seed1/config.json")]
    assert "a" not in config["identity"]["plan"]["groups"]["base"]
    assert_few_items_are_told(found)
    assert_a_killed_proof_goes_on(lambda: prove("--references", "2"), swapped, monkeypatch)
    capsys.readouterr()
    (other,) = place.rglob("references/*/seed1")
    assert_one_line(prove("--references", "0", "--checkpoint", other), capsys)
    assert prove("--references", "0") == 0 and "No clean reference: none was wanted" in capsys.readouterr().out


def test_a_detector_without_a_recorded_recipe_is_inconclusive(known, finished, capsys, monkeypatch, tmp_path):  # noqa: F811
    def prove(*flags):
        return started("prove", [str(finished), "--device", "cpu", *flags])

    assert prove() == 0, capsys.readouterr().err
    found, figures = read(finished)
    assert found["domain"] == "detection" and set(figures) >= PLACES
    assert found["curve"] == "AP50 (%)" and found["curves"]["relearn, 5 shots"]["result"]["share"][0] <= 1
    assert_pictures(finished)
    assert "nothing records how" in found["no_reference"] and found["verdicts"][0]["level"] == "reversible"
    assert {f["attack"] for f in figures.values()} >= {"output", "probe", "prototype", "relearn", "weights"}
    assert_few_items_are_told(found)
    assert_a_killed_proof_goes_on(prove, finished, monkeypatch)
    capsys.readouterr()
    file = torch.load(known["checkpoint"])
    torch.save(file | {"model": {name: value + 0.01 for name, value in file["model"].items()}}, tmp_path / "other.pth")
    assert_one_line(prove("--checkpoint", str(tmp_path / "other.pth")), capsys)
    assert prove("--references", "0") == 0 and "No clean reference: none was wanted" in capsys.readouterr().out
