"""The page of a run in a headless Chromium: a picture is dropped, the button is clicked, the answers are read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


def drop_and_click(panels, run, picture, folder):
    """The page shows the panels' own answers, also at strength 0, and asks nothing of any other machine.

    picture: a PIL image. The screenshots go to KS_SCREENSHOTS or FOLDER.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    picture.save(folder / "dropped.png")
    command = [sys.executable, "-m", "common.app", str(run)]
    own = {"env": environment(HF_HUB_OFFLINE="1"), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **own) as server:  # as a user starts it
        try:
            address = server.stdout.readline().split()[2]
            assert address.startswith("http://127.0.0.1:")
            asked = []
            with playwright.sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                tab = browser.new_page(viewport={"width": 1280, "height": 1000})
                tab.on("request", lambda request: asked.append(request.url))
                tab.goto(address)
                tab.set_input_files("#picture input[type=file]", folder / "dropped.png")
                for scale in (1.0, 0.0):
                    if scale != 1:
                        tab.locator("#scale input[type=number]").fill("0")
                        tab.locator("#answer").click()
                    for number, panel in enumerate(panels.answers(picture, scale)):
                        box = tab.locator(f"#text-{number} textarea")
                        playwright.expect(box).to_have_value(panel.text, timeout=30000)
                    playwright.expect(tab.get_by_text("processing |")).to_have_count(0, timeout=30000)
                    place = Path(os.environ.get("KS_SCREENSHOTS", folder))
                    tab.screenshot(path=place / f"app-{panels.session.name}-{scale:g}.png", full_page=True)
                browser.close()
            local = (address, "data:", "blob:", address.replace("http", "ws"))
            assert asked and not [url for url in asked if not url.startswith(local)]
        finally:
            server.terminate()
