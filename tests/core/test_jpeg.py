"""Damage in the middle of a JPEG file is found, although it can be decoded."""

import io

import numpy as np
from PIL import Image

from common.images import open_image
from common.jpeg import damage


def photo(seed):
    noise = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((128, 128)).save(data, "JPEG", quality=90)
    return bytearray(data.getvalue())


def test_damaged_files_are_named_and_sound_ones_are_not(tmp_path, capfd):
    for seed in range(40):
        (tmp_path / f"{seed}.jpg").write_bytes(photo(seed))
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    harmed = {}
    for name, harm in {"cut": b"", "noise": bytes(range(7, 90))}.items():
        data = photo(99)
        middle = len(data) * 2 // 3
        data[middle : middle + 200] = harm
        (tmp_path / f"{name}.jpg").write_bytes(data)
        open_image(tmp_path / f"{name}.jpg")  # Pillow is content
        harmed[str(tmp_path / f"{name}.jpg")] = name
    found = damage(sorted(tmp_path.iterdir()))
    assert {problem.where for problem in found} == harmed.keys()
    assert all("is damaged inside (Corrupt JPEG data" in problem.text and not problem.fatal for problem in found)
    assert capfd.readouterr().err == "", "libjpeg's own words are not shown"
