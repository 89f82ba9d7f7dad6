"""Annotations, masks and configs that went wrong once, and others of their kinds: each is one line on stderr."""

import json
import shutil

import numpy as np
import pytest
import test_detection_scripts
import test_segmentation_scripts
from PIL import Image
from refusals import DEEP, DETECTION, SEGMENTATION, ids_of, offline, refused  # noqa: F401
from test_detection_scripts import known  # noqa: F401
from test_segmentation_scripts import place  # noqa: F401

from common import commands

# ---- data of detection ---------------------------------------------------------------------------------------------

COCO = [
    ("images", {"width": "abc"}), ("images", {"width": "wide"}), ("images", {"width": float("nan")}), ("images", {"width": 0}),
    ("images", {"width": -4}), ("images", {"width": 1e9}), ("images", {"id": [1]}), ("images", {"id": None}), ("images", {"file_name": None}),
    ("images", {"file_name": 5}), ("images", {"file_name": "nothing.png"}), ("images", {"file_name": "x\x00y"}), ("images", {"file_name": "a" * 5000}),
    ("images", {"width": 71}), ("images", {"width": 72.5}), ("images", {"height": 9}), ("annotations", {"bbox": None}), ("annotations", {"bbox": "1234"}),
    ("annotations", {"bbox": [1, 2, 3]}), ("annotations", {"bbox": [1, 2, "3", 4]}), ("annotations", {"bbox": [1, 2, None, 4]}),
    ("annotations", {"bbox": [1, 2, float("nan"), 4]}), ("annotations", {"bbox": [1, 2, float("inf"), 4]}), ("annotations", {"bbox": {}}),
    ("annotations", {"bbox": [1e300, 2, 3, 4]}), ("annotations", {"iscrowd": "yes"}), ("annotations", {"image_id": 77}),
    ("annotations", {"image_id": [1]}), ("annotations", {"category_id": 77}), ("annotations", {"category_id": "a"}),
    ("annotations", {"category_id": [1]}), ("categories", {"id": "x"}), ("categories", {"id": [1]}), ("categories", {"id": None}),
    ("categories", {"name": ["x"]}), ("categories", {"name": None}), ("categories", {"name": 5}), ("images", None), ("annotations", None),
    ("categories", None), ("images", 5), ("annotations", {"id": {}}), ("categories", 7), ("annotations", "x"),
]  # fmt: skip


def data_copy(known, tmp_path):  # noqa: F811
    return shutil.copytree(known["data"], tmp_path / "data")


def detection_swap(capsys, known, tmp_path, data):  # noqa: F811
    words = test_detection_scripts.swap_flags({**known, "data": str(data)}, "--output-dir", str(tmp_path / "out"))
    return refused(capsys, tmp_path, lambda: commands.main(DETECTION, "swap", words))


@pytest.mark.parametrize("part, change", COCO, ids=ids_of(COCO))
def test_coco_files(part, change, known, tmp_path, capsys):  # noqa: F811
    data = data_copy(known, tmp_path)
    content = json.loads((data / "instances_train.json").read_text())
    if isinstance(change, dict):
        content[part][0] |= change
    else:
        content[part] = change
    (data / "instances_train.json").write_text(json.dumps(content))
    detection_swap(capsys, known, tmp_path, data)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "5", "{}", "{", "\x00\xff", DEEP, '{"images": ' + DEEP + "}"], ids=range(9)
)
def test_coco_texts(text, known, tmp_path, capsys):  # noqa: F811
    data = data_copy(known, tmp_path)
    (data / "instances_val.json").write_bytes(text.encode("latin1"))
    detection_swap(capsys, known, tmp_path, data)


@pytest.mark.parametrize("kind", ["bomb", "half", "thin"])
def test_damaged_pictures_stop_a_detection_run_before_it_starts(kind, known, tmp_path, capsys):  # noqa: F811
    data = data_copy(known, tmp_path)
    file = data / "images" / "0.png"
    if kind == "bomb":
        Image.new("1", (30000, 30000)).save(file)
    elif kind == "thin":
        Image.new("1", (1, 20000)).save(file)
    else:
        file.write_bytes(file.read_bytes()[:-60])
    assert "0.png" in detection_swap(capsys, known, tmp_path, data)


DINO = ["_base_ = 5", "_base_ = [1]", "_base_ = '/nonexistent.py'", "_base_ = 'c.py'", "import os", "x = __import__('os')", "x = open('y')",
        "(", "\x00", "lambda: 0", "hidden_dim = 'x'", "hidden_dim = [1]", "nheads = 0", "enc_layers = 'x'", "hidden_dim = None",
        "num_queries = 0", "num_queries = 'x'", "backbone = 5", "backbone = 'nothing'", "x = " + "-" * 5000 + "1", "return_interm_indices = 'x'"]  # fmt: skip


@pytest.mark.parametrize("text", DINO, ids=ids_of(DINO))
def test_dino_files(text, known, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.py").write_text(text)
    words = [
        "--data",
        known["data"],
        "-c",
        str(tmp_path / "c.py"),
        "--output-dir",
        str(tmp_path / "out"),
        *test_detection_scripts.TINY,
    ]
    words = [w for w in words if w not in ("--lora-rank", "2")]
    refused(capsys, tmp_path, lambda: commands.main(DETECTION, "pretrain", words))


def test_chains_of_dino_files_end(known, tmp_path, capsys):  # noqa: F811
    for number in range(1200):
        (tmp_path / f"c{number}.py").write_text(f"_base_ = 'c{number + 1}.py'")
    (tmp_path / "c1200.py").write_text("x = 1")
    for number in range(40):
        (tmp_path / f"d{number}.py").write_text(f"_base_ = ['d{number + 1}.py', 'd{number + 1}.py']")
    (tmp_path / "d40.py").write_text("x = 1")
    for name in ("c0.py", "d0.py"):
        words = ["--data", known["data"], "-c", str(tmp_path / name), "--output-dir", str(tmp_path / "out")]
        refused(capsys, tmp_path, lambda words=words: commands.main(DETECTION, "pretrain", words))


# ---- data of segmentation ------------------------------------------------------------------------------------------

CLASSES = ["5", "null", "[]", "{}", "{", '{"classes": 5}', '{"classes": []}', '{"classes": ["a"], "ignore_index": "x"}', '{"classes": [1]}',
           '{"classes": ["a"], "ignore_index": null}', '{"classes": {"x": "a"}}', '{"classes": ["a"], "splits": 5}', DEEP, "\x00\xff",
           json.dumps({"classes": [f"c{i}" for i in range(300)]}), '{"classes": {"0": "a", "00": "b"}}', '{"classes": {"-1": "a", "0": "b"}}', '{"classes": {"0": "a", "0_1": "b"}}',
           '{"classes": ["a"]}', '{"classes": ["a", "a", "b", "c", "d", "e", "f"]}', '["a"]']  # fmt: skip


def segmentation_swap(capsys, place, tmp_path, data):  # noqa: F811
    words = [str(word) for word in test_segmentation_scripts.swap_flags(place, tmp_path / "out")]
    words[words.index("--data") + 1] = str(data)
    return refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "swap", words))


@pytest.mark.parametrize("text", CLASSES, ids=ids_of(range(len(CLASSES))))
def test_class_lists(text, place, tmp_path, capsys):  # noqa: F811
    data = shutil.copytree(place / "data", tmp_path / "data")
    (data / "classes.json").write_bytes(text.encode("latin1"))
    segmentation_swap(capsys, place, tmp_path, data)


MASKS = {
    "float": lambda ids: Image.fromarray(ids.astype(np.float32)),
    "nan": lambda ids: Image.fromarray(np.full(ids.shape, np.nan, np.float32)),
    "colour": lambda ids: Image.fromarray(np.repeat(ids[..., None], 3, 2)),
    "other size": lambda ids: Image.fromarray(ids[:9]),
    "other ids": lambda ids: Image.fromarray(ids + 50),
    "negative": lambda ids: Image.fromarray(ids.astype(np.int32) - 9),
    "thin": lambda ids: Image.new("L", (1, 20000)),
    "bomb": lambda ids: Image.new("1", (30000, 30000)),
    "lossy": lambda ids: Image.fromarray(ids),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_masks(kind, part, place, tmp_path, capsys):  # noqa: F811
    data = shutil.copytree(place / "data", tmp_path / "data")
    file = data / "annotations" / part / "0.png"
    form = {"float": "TIFF", "nan": "TIFF", "negative": "TIFF", "lossy": "JPEG"}.get(kind, "PNG")
    with Image.open(file) as image:
        ids = np.array(image)
    MASKS[kind](ids).save(file, format=form)
    assert "0.png" in segmentation_swap(capsys, place, tmp_path, data)


def test_a_truncated_picture_stops_a_segmentation_run_before_it_starts(place, tmp_path, capsys):  # noqa: F811
    data = shutil.copytree(place / "data", tmp_path / "data")
    file = data / "images" / "training" / "3.png"
    file.write_bytes(file.read_bytes()[:-40])
    assert "3.png" in segmentation_swap(capsys, place, tmp_path, data)


def test_segmentation_without_test_images_says_so(place, tmp_path, capsys):  # noqa: F811
    data = shutil.copytree(place / "data", tmp_path / "data")
    shutil.rmtree(data / "images" / "validation")
    assert "test" in segmentation_swap(capsys, place, tmp_path, data)


BASES = {
    "wide": ["a.yaml", "_BASE_: [{0}, {0}, {0}, {0}]"],
    "self": ["a.yaml", "_BASE_: a.yaml"],
    "url": ["a.yaml", "_BASE_: http://x/y.yaml"],
}


@pytest.mark.parametrize("kind", BASES)
def test_bases_of_yaml_configs(kind, place, tmp_path, capsys):  # noqa: F811
    for number in range(18):
        (tmp_path / f"{number}.yaml").write_text("_BASE_: [" + ", ".join([f"{number + 1}.yaml"] * 4) + "]")
    (tmp_path / "18.yaml").write_text("SEED: 1")
    (tmp_path / "a.yaml").write_text(BASES[kind][1].format("0.yaml"))
    words = [
        "--config-file",
        str(tmp_path / "a.yaml"),
        "--data",
        str(place / "data"),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "pretrain", words))
