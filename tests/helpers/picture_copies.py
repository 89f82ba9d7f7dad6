"""Copies of one picture that show the same, and what a predict says of each."""

import json

import numpy as np
from PIL import Image


def save_copies(folder):
    """The same grey picture in 8 and 16 bits, as CMYK, with alpha, and stored turned with an EXIF tag."""
    grey = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    image = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.mkdir()
    image.save(folder / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "float.tiff")
    image.convert("RGB").convert("CMYK").save(folder / "cmyk.tiff")
    image.convert("LA").save(folder / "alpha.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    return [str(path) for path in sorted(folder.iterdir())]


def assert_equal_answers(predict, folder, capsys):
    """`predict(files)` starts predict.py --json; every copy must get the same answer."""
    files = save_copies(folder)
    capsys.readouterr()
    assert predict(files) == 0
    answers = [{k: v for k, v in a.items() if k != "file"} for a in json.loads(capsys.readouterr().out)]
    assert len(answers) == len(files) == 6 and all(answer == answers[0] for answer in answers)
