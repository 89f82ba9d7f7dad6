"""The page: each state of a run answers as that state does, it listens here alone, and a browser can use it."""

import json

import pytest
import torch
from browser import drop_and_click, needs_browser
from colours import picture
from PIL import Image
from test_prove import HERE, place, started  # noqa: F401  # a fixture
from vit_files import one_line

from common import adapters
from common.app import page as pages
from common.app.panels import Panels
from common.domains import session_of
from common.errors import UserError


@pytest.fixture(scope="module")
def swapped(place):  # noqa: F811
    """A run that learns white, then forgets green."""
    argv = ["--data", place / "data", "--checkpoint", place / "base", "--learn", "white", "--forget", "green"]
    argv += ["--epochs", "2", "--batch-size", "6", "--lora-rank", "3", "--allow-chance", *HERE]
    assert started("swap", *argv, "--output-dir", place / "both") == 0
    return place / "both"


@pytest.fixture(scope="module")
def panels(swapped):
    return Panels(session_of(swapped), swapped, {})


def image():
    return Image.fromarray(picture("white", 1))


def test_the_panels_are_the_base_and_the_state_after_each_phase(panels, swapped):
    assert panels.titles == ["base", "after 1 learn", "after 2 forget"]
    base, learned, forgotten = panels.answers(image())
    assert "white" not in base.text and "white" in learned.text and "white" in forgotten.text
    assert learned.text != forgotten.text
    session = session_of(swapped)
    image().save(swapped.parent / "white.png")
    whole = session.load(swapped, {})
    answer = next(session.predict(whole, [swapped.parent / "white.png"], torch.device("cpu")))
    assert answer.text == forgotten.text
    assert panels.answers(image())[0].text == base.text  # nothing stays on


def test_strength_zero_takes_the_updates_off_and_one_is_as_trained(panels):
    one, none = panels.answers(image(), 1.0), panels.answers(image(), 0.0)
    assert one[0].text == none[0].text and one[2].text != none[2].text


def test_phases_are_adapters_of_their_own(swapped):
    first, last = (adapters.read(swapped / name) for name in ("phases/1", "adapter"))
    assert first[0]["weights"] != last[0]["weights"] and first[0]["base_sha256"] == last[0]["base_sha256"]
    assert not (swapped / "phases/2").exists()


def test_a_run_of_an_unknown_domain_is_refused(swapped, tmp_path):
    text = (swapped / "config.json").read_text().replace('"domain": "classification"', '"domain": "os.path"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="not installed"):
        session_of(tmp_path)


def test_the_proof_stands_beside_the_answers(tmp_path):
    assert "No proof yet" in pages.proof_of(tmp_path)
    proof = {"verdicts": [{"headline": "Gone.", "text": "0 of 9."}], "figures": [], "budget": {}, "forgotten": ["0"]}
    (tmp_path / "proof.json").write_text(json.dumps(proof))
    assert "**Gone.** 0 of 9." in pages.proof_of(tmp_path)


@pytest.mark.parametrize(
    "text", ["null", "5", "[]", "{", '{"verdicts": [{}], "figures": [], "budget": {}, "forgotten": []}']
)
def test_a_damaged_proof_is_one_line(text, tmp_path):
    (tmp_path / "proof.json").write_text(text)
    with pytest.raises(UserError) as error:
        pages.proof_of(tmp_path)
    one_line(error)


def test_a_missing_package_is_one_line(panels, swapped, monkeypatch):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'knowledge-swapping\[app\]'"):
        pages.build(panels, swapped)


@pytest.mark.slow
@needs_browser
def test_a_browser_drops_a_picture_and_clicks(panels, swapped, tmp_path):
    drop_and_click(panels, swapped, image().resize((120, 120)), tmp_path)
