"""`prove` on a tiny detector and a tiny segmenter: the same attacks on matched queries and segments."""

import json

from test_detection_scripts import finished, known, started  # noqa: F401  # fixtures
from test_segmentation_scripts import call, place, swapped  # noqa: F401  # fixtures

PLACES = {"forgotten items, found under any name", "forgotten items, seen but unnamed"}


def read(folder):
    found = json.loads((folder / "proof.json").read_text())
    return found, {f["name"]: f for f in found["figures"]}


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
    seen, found_any = (figures[name]["result"]["value"] for name in sorted(PLACES, reverse=True))
    assert seen <= found_any
    assert all(len(f["references"]) == 2 for f in figures.values())
    (config,) = [json.loads(p.read_text()) for p in place.rglob("references/*/seed1/config.json")]
    assert "a" not in config["identity"]["plan"]["groups"]["base"]


def test_a_detector_without_a_recorded_recipe_is_inconclusive(finished, capsys):  # noqa: F811
    assert started("prove", [str(finished), "--device", "cpu"]) == 0, capsys.readouterr().err
    found, figures = read(finished)
    assert found["domain"] == "detection" and set(figures) >= PLACES
    assert "no record" in found["no_reference"] and found["verdicts"][0]["level"] == "reversible"
    assert {f["attack"] for f in figures.values()} >= {"output", "probe", "prototype", "relearn", "weights"}
