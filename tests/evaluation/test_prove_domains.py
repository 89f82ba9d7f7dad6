"""`prove` on a tiny detector and a tiny segmenter: the same attacks on matched queries and segments."""

import json

from test_detection_scripts import finished, known, started  # noqa: F401  # fixtures
from test_segmentation_scripts import call, place, swapped  # noqa: F401  # fixtures

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


def test_a_segmenter_is_proved_against_models_that_never_saw_the_class(place, swapped, capsys):  # noqa: F811
    assert call("prove", swapped, "--references", "2", "--jobs", "1", "--cache-dir", "", "--device", "cpu") == 0, (
        capsys.readouterr().err
    )
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


def test_a_detector_without_a_recorded_recipe_is_inconclusive(finished, capsys):  # noqa: F811
    assert started("prove", [str(finished), "--device", "cpu"]) == 0, capsys.readouterr().err
    found, figures = read(finished)
    assert found["domain"] == "detection" and set(figures) >= PLACES
    assert found["curve"] == "AP50 (%)" and found["curves"]["relearn, 5 shots"]["result"]["share"][0] <= 1
    assert_pictures(finished)
    assert "no record" in found["no_reference"] and found["verdicts"][0]["level"] == "reversible"
    assert {f["attack"] for f in figures.values()} >= {"output", "probe", "prototype", "relearn", "weights"}
