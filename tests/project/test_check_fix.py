"""`check --json` and `check --fix` of pictures in class folders and of masks; detection's are beside its layouts."""

import json

import numpy as np
import pytest
from colours import picture
from ks_classification.session import SESSION as CLASSIFICATION
from ks_segmentation.data import layouts
from ks_segmentation.session import SESSION as SEGMENTATION
from PIL import Image

from common import commands


def told(capsys, session, *words):
    code = commands.main(session, "check", [*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def class_folders(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    for part, start in (("train", 0), ("test", 50)):
        for name in ("red", "blue sky"):
            folder = root / part / name
            folder.mkdir(parents=True)
            images = [Image.fromarray(picture(name.split()[0], start + i)) for i in range(4)]
            images[0].save(folder / "UPPER Case.JPG", exif=exif)
            images[1].convert("CMYK").save(folder / "b.jpg")
            images[2].convert("P").save(folder / "c.d.png")
            Image.fromarray(np.asarray(images[3].convert("L"), np.uint16) * 257).save(folder / "deep.png")
    (root / "train/red/broken.jpg").write_bytes(b"no")
    (root / "test/red/copy.JPG").write_bytes((root / "train/red/UPPER Case.JPG").read_bytes())


def test_class_folders(tmp_path, capsys):
    class_folders(tmp_path / "odd")
    code, before = told(capsys, CLASSIFICATION, tmp_path / "odd")
    kinds = {p["kind"] for p in before["sets"][0]["problems"]}
    assert code == 2 and before["errors"] == 1 and kinds == {"unreadable image", "test image in the training data"}
    code, _ = told(capsys, CLASSIFICATION, tmp_path / "odd", "--fix", tmp_path / "clean")
    assert code == 0
    code, after = told(capsys, CLASSIFICATION, tmp_path / "clean")
    assert code == 0 and (after["errors"], after["notes"]) == (0, 0)
    files = [p for p in (tmp_path / "clean").rglob("*") if p.is_file()]
    assert len(files) == 16
    for file in files:
        with Image.open(file) as image:
            assert image.mode == "RGB" and not image.getexif()


def test_masks(tmp_path, capsys):
    root = tmp_path / "odd"
    for part in ("training", "validation"):
        for i, name in enumerate(["a b.jpg", "B.JPG", "c.png"]):
            ids = np.full((32, 40), i % 2, np.uint8)
            ids[:, 20:] = 7 if i == 1 else 1
            pixels = Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 40, 3), dtype=np.uint8))
            for folder, image, file in (("images", pixels, name), ("annotations", Image.fromarray(ids), name)):
                path = root / folder / part / file
                path = path if folder == "images" else path.with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                (image.resize((30, 24)) if name == "c.png" and folder == "annotations" else image).save(path)
    (root / "classes.json").write_text('["road", "car"]')
    code, before = told(capsys, SEGMENTATION, root)
    assert code == 2 and {p["kind"] for p in before["sets"][0]["problems"] if p["fatal"]} == {
        "unknown id",
        "unreadable or unfitting",
    }
    assert told(capsys, SEGMENTATION, root, "--fix", tmp_path / "clean")[0] == 0
    code, after = told(capsys, SEGMENTATION, tmp_path / "clean")
    assert code == 0 and after["errors"] == 0
    found = layouts.load(str(tmp_path / "clean"))
    assert [item.name for item in found.train] == ["training/B.jpg", "training/a b.jpg"]
    assert found.train[0].ids()[0, -1] == 255 and found.train[0].ids()[0, 0] == 1


@pytest.mark.parametrize("session", [CLASSIFICATION, SEGMENTATION], ids=lambda s: s.name)
def test_fix_takes_one_set(session, tmp_path, capsys):
    assert commands.main(session, "check", ["a", "b", "--fix", str(tmp_path / "x")]) == 2
    assert "one data set" in capsys.readouterr().err and not (tmp_path / "x").exists()
