"""The page: each state of a run answers as that state does, it listens here alone, and a browser can use it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colours import picture
from PIL import Image
from processes import environment
from test_prove import HERE, place, started  # noqa: F401  # a fixture

from common import adapters
from common.app import page as pages
from common.app.panels import Panels
from common.domains import session_of
from common.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    (tmp_path / "proof.json").write_text('{"verdicts": [{"headline": "Gone.", "text": "0 of 9."}]}')
    assert "**Gone.** 0 of 9." in pages.proof_of(tmp_path)


def test_a_missing_package_is_one_line(panels, swapped, monkeypatch):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'knowledge-swapping\[app\]'"):
        pages.build(panels, swapped)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_browser_drops_a_picture_and_clicks(panels, swapped, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    command = [sys.executable, "-m", "common.app", str(swapped)]
    own = {"env": environment(HF_HUB_OFFLINE="1"), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **own) as server:  # as a user starts it
        try:
            address = server.stdout.readline().split()[2]
            assert address.startswith("http://127.0.0.1:")
            image().resize((120, 120)).save(tmp_path / "white.png")
            asked = []
            with playwright.sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                tab = browser.new_page(viewport={"width": 1280, "height": 1000})
                tab.on("request", lambda request: asked.append(request.url))
                tab.goto(address)
                tab.set_input_files("#picture input[type=file]", tmp_path / "white.png")
                last = tab.locator("#text-2 textarea")
                expected = panels.answers(image().resize((120, 120)))[2].text
                playwright.expect(last).to_have_value(expected, timeout=30000)
                tab.locator("#scale input[type=number]").fill("0")
                tab.locator("#answer").click()
                weaker = panels.answers(image().resize((120, 120)), 0.0)[2].text
                playwright.expect(last).to_have_value(weaker, timeout=30000)
                playwright.expect(tab.get_by_text("processing |")).to_have_count(0, timeout=30000)
                tab.screenshot(path=Path(os.environ.get("KS_SCREENSHOTS", tmp_path)) / "app.png", full_page=True)
                browser.close()
            own = (address, "data:", "blob:", address.replace("http", "ws"))
            assert asked and not [url for url in asked if not url.startswith(own)]
        finally:
            server.terminate()
