"""The page with a detector and with a segmenter: a browser can use it."""

import pytest
from browser import drop_and_click, needs_browser
from PIL import Image
from test_detection_scripts import finished, known  # noqa: F401  # fixtures
from test_segmentation_scripts import place, swapped  # noqa: F401  # fixtures

from common.app.panels import Panels
from common.domains import session_of

pytestmark = [pytest.mark.slow, needs_browser]


def tried(run, picture, folder):
    panels = Panels(session_of(run), run, {})
    assert panels.titles == ["base", "after 1 learn", "after 2 forget"]
    assert all(panel.picture.size == picture.size for panel in panels.answers(picture))
    drop_and_click(panels, run, picture, folder)


def test_a_detector(finished, known, tmp_path):  # noqa: F811
    tried(finished, Image.open(known["root"] / "data/images/0.png").convert("RGB"), tmp_path)


def test_a_segmenter(swapped, place, tmp_path):  # noqa: F811
    tried(swapped, Image.open(place / "data/images/validation/3.png").convert("RGB"), tmp_path)
