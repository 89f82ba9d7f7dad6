"""Data layouts, weight files and saved states that are damaged or hostile: each is one line, and nothing is written."""

import io
import os
import pickle
import shutil

import numpy as np
import pytest
import test_detection_scripts
import test_scripts
import torch
from PIL import Image
from refusals import CLASSIFICATION, DEEP, DETECTION, SEGMENTATION, SESSIONS, ids_of, offline, refused  # noqa: F401
from test_detection_scripts import finished as detected  # noqa: F401  fixtures
from test_detection_scripts import known  # noqa: F401
from test_scripts import place as classified  # noqa: F401
from test_segmentation_scripts import place, swapped  # noqa: F401

from common import commands, demo

# ---- VOC and YOLO --------------------------------------------------------------------------------------------------

XML = """<annotation><filename>{0}.png</filename><size><width>72</width><height>64</height></size>
<object><name>{1}</name><bndbox><xmin>4</xmin><ymin>8</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object></annotation>"""
LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12))
    + "]><annotation><filename>&m;</filename></annotation>"
)
VOC = [
    ("Annotations/0.xml", text)
    for text in (
        "", "no xml", "\xff\xfe", "<a>" * 50_000, "<a>" * 50_000 + "</a>" * 50_000, LAUGHS, "<annotation/>", XML.replace("72", "0"),
        XML.replace("72", "x"), XML.replace("72", "1e3"), XML.replace("72", "-5"), XML.replace("72", "9" * 5000), XML.replace("72", "71"),
        XML.replace(">4<", ">nan<"), XML.replace(">4<", ">inf<"), XML.replace(">4<", "><"), XML.replace(">4<", ">999<"),
        XML.replace("<name>{1}</name>", ""), XML.replace("{1}", ""), XML.replace("{0}.png", "nothing.png/../../x").replace("72", "1"),
    )
] + [("ImageSets/Main/train.txt", text) for text in ("", "\xff\x00\xfe", "nothing\n", "../x\n", "\x00\n", "a" * 5000)]  # fmt: skip
YOLO = [
    ("labels/train/0.txt", text)
    for text in ("\xff\xfe", "0 nan .5 .1 .1", "0 inf .5 .1 .1", "x .5 .5 .1 .1", "99 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0 .5 .5",
                 "0 5 5 1 1", "0 .5 .5 1_0 .1", "0 .5 .5 0 0", "0 .5 .5 -1 -1", "1e9 .5 .5 .1 .1", "0 1e300 1e300 1e300 1e300", "9" * 6000 + " .5 .5 .1 .1")
] + [
    ("data.yaml", text)
    for text in ("", "5", "[]", "names: 5", "names: []", "names: {a: x, 1: y}", "names: [[x], [y]]", "names: [a, a, b, c]", "\x00", "\xff\xfe",
                 "a: " + DEEP, "names: &a [b, b]\nx: &b [*a, *a]\ny: [*b", "names: {[a]: b}", "!!python/object/apply:os.system [x]")
]  # fmt: skip


def save_voc(folder):
    names = {"train": "abcc", "val": "abc"}
    numbers = {part: range(10 * i, 10 * i + len(text)) for i, (part, text) in enumerate(names.items())}
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True)
    for part, text in names.items():
        (folder / f"ImageSets/Main/{part}.txt").write_text("\n".join(map(str, numbers[part])))
        for number, name in zip(numbers[part], text, strict=True):
            (folder / f"Annotations/{number}.xml").write_text(XML.format(number, name))
            Image.new("RGB", (72, 64), (number, 80, 120)).save(folder / f"JPEGImages/{number}.png")


def save_yolo(folder):
    for part in ("train", "val"):
        for inner in ("images", "labels"):
            (folder / inner / part).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (72, 64), (number, 80, 120)).save(folder / f"images/{part}/{number}.png")
            (folder / f"labels/{part}/{number}.txt").write_text(f"{number} .5 .5 .25 .25")
    (folder / "data.yaml").write_text("names: [a, b, c]")


@pytest.mark.parametrize("file, text", VOC + YOLO, ids=ids_of(range(len(VOC + YOLO))))
def test_layouts_of_detection(file, text, known, tmp_path, capsys):  # noqa: F811
    (save_voc if (file, text) in VOC else save_yolo)(tmp_path / "data")
    (tmp_path / "data" / file).write_bytes(text.encode("latin1"))
    flags = ["--checkpoint", known["checkpoint"], "--data", str(tmp_path / "data"), "--forget", "b", "--retain", "a,c"]
    words = [*flags, *test_detection_scripts.TINY, "--output-dir", str(tmp_path / "out")]
    refused(capsys, tmp_path, lambda: commands.main(DETECTION, "swap", words))


def test_the_layouts_themselves_are_read(known, tmp_path):  # noqa: F811
    for save in (save_voc, save_yolo):
        data = tmp_path / save.__name__
        save(data)
        flags = [
            "--checkpoint",
            known["checkpoint"],
            "--data",
            str(data),
            "--forget",
            "b",
            "--dry-run",
            "--allow-chance",
        ]
        assert commands.main(DETECTION, "swap", [*flags, *test_detection_scripts.TINY]) == 0


# ---- weights and states ----------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return (print, ("this code must not run",))


def saved(content):
    data = io.BytesIO()
    torch.save(content, data)
    return data.getvalue()


WHOLE = saved({"model": {"a": torch.zeros(3)}})
WEIGHTS = {
    "empty": b"", "text": b"no weights", "pickle": pickle.dumps({"a": 1}), "hostile pickle": pickle.dumps(Hostile()),
    "hostile": saved({"model": Hostile()}), "list": saved([1]), "none": saved(None), "number": saved(5), "tensor": saved(torch.zeros(2)),
    "nothing": saved({}), "model 5": saved({"model": 5}), "model list": saved({"model": [torch.zeros(2)]}), "other keys": WHOLE,
    "other format": saved({"model": {"a": torch.zeros(2).to(torch.float8_e4m3fn)}}), "numbers as keys": saved({"model": {1: torch.zeros(2)}}), "texts": saved({"model": {"a": "b"}}), "cut": WHOLE[:200], "cut late": WHOLE[:-30],
    "zip": b"PK\x03\x04" + bytes(100), "zeros": bytes(1000), "nested": saved({"model": {"model": {"model": {}}}}),
}  # fmt: skip
ENDINGS = {
    "classification": (".pth", ".bin", ".npz", ".safetensors"),
    "detection": (".pth",),
    "segmentation": (".pth", ".pkl"),
}
WEIGHT_CASES = [(name, end, kind) for name, ends in ENDINGS.items() for end in ends for kind in WEIGHTS]


@pytest.mark.parametrize("name, ending, kind", WEIGHT_CASES, ids=ids_of(WEIGHT_CASES))
def test_weight_files(name, ending, kind, request, tmp_path, capsys):
    file = tmp_path / f"w{ending}"
    file.write_bytes(WEIGHTS[kind])
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    words = [str(file), str(tmp_path / "a.png"), "--device", "cpu"]
    if name == "segmentation":
        words += ["--config-file", str(request.getfixturevalue("place") / "tiny.yaml")]
    assert "must not run" not in refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "predict", words))
    assert "must not run" not in capsys.readouterr().out


STATES = {
    "empty": b"", "text": b"x", "list": saved([1]), "nothing": saved({}), "hostile": saved({"done": Hostile()}), "pickle": pickle.dumps({"a": 1}),
    "done": saved({"done": {}}), "done 5": saved({"done": 5, "model": {}}), "cut": WHOLE[:100], "other": saved({"model": {"a": torch.zeros(2)}, "done": {"phase": 9}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_saved_states(kind, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    (run / "state.pt").write_bytes(STATES[kind])
    words = test_scripts.swap_flags(classified, "--output-dir", str(run))
    refused(capsys, tmp_path / "run", lambda: commands.main(CLASSIFICATION, "swap", words))


FOLDERS = ["", "[]", "null", "{}", "5", "\x00\xff", DEEP, '{"model_type": 5}', '{"model_type": "bert"}', '{"model_type": null}',
           '{"architectures": 5, "model_type": "mask2former"}', '{"model_type": "deformable_detr", "d_model": "x"}',
           '{"model_type": "deformable_detr", "d_model": -1}', '{"model_type": "mask2former", "auto_map": {"AutoModel": "x--y.Z"}}']  # fmt: skip


@pytest.mark.parametrize("text", FOLDERS, ids=ids_of(range(len(FOLDERS))))
@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_model_folders_of_others(prefix, name, text, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(text.encode("latin1"))
    (folder / "model.safetensors").write_bytes(b"")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    words = [prefix + str(folder), str(tmp_path / "a.png"), "--device", "cpu"]
    refused(capsys, tmp_path, lambda: commands.main(SESSIONS[name], "predict", words))


# ---- demo and chains of configs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["--seeds 0", "--seeds -1", "--seeds x", "--orders xyz", "--orders ,", "--jobs 0", "--jobs -1"]
)
@pytest.mark.parametrize("name", SESSIONS)
def test_demonstrations(name, words, tmp_path, capsys):
    shown = demo.Demo("about", "title", "", "")
    run = lambda: demo.main(SESSIONS[name], shown, [*words.split(" "), "--output-dir", str(tmp_path / "out")])  # noqa: E731
    refused(capsys, tmp_path, run)


def test_long_chains_of_yaml_configs_end(place, tmp_path, capsys):  # noqa: F811
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: {number + 1}.yaml")
    (tmp_path / "1000.yaml").write_text("SEED: 1")
    words = [
        "--config-file",
        str(tmp_path / "0.yaml"),
        "--data",
        str(place / "data"),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "pretrain", words))


def test_a_hybrid_without_its_stem_is_refused(classified, tmp_path, capsys):  # noqa: F811
    words = ["--data", str(classified / "data"), "--model", "hybrid_mobilenetv2", "--output-dir", str(tmp_path / "out")]
    assert "--stem-weights" in refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "pretrain", words))


def test_a_number_of_classes_that_the_data_contradicts_is_refused(place, tmp_path, capsys):  # noqa: F811
    words = [
        "--config-file",
        str(place / "tiny.yaml"),
        "--data",
        str(place / "data"),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    words += ["--set", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "99"]
    assert "NUM_CLASSES" in refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "pretrain", words))


def test_arrays_with_objects_in_them_are_not_unpickled(tmp_path, capsys):
    file = tmp_path / "w.npz"
    np.savez(file, a=np.array([Hostile()], dtype=object))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    words = [str(file), str(tmp_path / "a.png"), "--device", "cpu"]
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", words))


# ---- pipes, sizes and numbers ----------------------------------------------------------------------------------------

DONE = [("phase", "x"), ("phase", -1), ("phase", 10**9), ("phase", float("nan")), ("step", None), ("step", -1), ("metrics", -1),
        ("metrics", 10**9), ("steps", [1]), ("seconds", "x")]  # fmt: skip
PARTS = [(name, value) for name in ("model", "method", "guard", "average") for value in ({}, {"a": "b"}, [1])][1:]


@pytest.mark.parametrize("name, value", [*DONE, *PARTS], ids=ids_of([*DONE, *PARTS]))
def test_saved_states_of_another_form(name, value, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    state = torch.load(run / "state.pt", weights_only=True)
    state["done"] |= {name: value} if (name, value) in DONE else {"phase": 1, "step": 0}
    if (name, value) in PARTS:
        state[name] = value
    torch.save(state, run / "state.pt")
    words = test_scripts.swap_flags(classified, "--output-dir", str(run))
    assert "--overwrite" in refused(capsys, tmp_path / "run", lambda: commands.main(CLASSIFICATION, "swap", words))


PIPES = ["state.pt", "run.lock", "adapter/swap.json"]


@pytest.mark.parametrize("file", PIPES)
def test_a_pipe_in_the_place_of_a_file_is_not_read(file, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    if file.startswith("adapter"):
        words = [str(run), str(tmp_path / "a.png")]
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
        refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", words))
    else:
        words = test_scripts.swap_flags(classified, "--output-dir", str(run))
        refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "swap", words))


FILES = [(flag, where) for flag in ("--learn=@", "--split=", "--plan=", "--config=", "--data=", "--checkpoint=")
         for where in ("pipe", "/dev/zero", "~nobody/x")]  # fmt: skip


@pytest.mark.parametrize("flag, where", [*FILES, ("--feature-cache=", "pipe")])
def test_flags_that_name_a_pipe_or_device(flag, where, classified, tmp_path, capsys):  # noqa: F811
    os.mkfifo(tmp_path / "pipe")
    words = [*test_scripts.swap_flags(classified, "--output-dir", str(tmp_path / "out")), flag + str(tmp_path / where)]
    words[-1] = flag + (str(tmp_path / where) if where == "pipe" else where)
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "swap", words))


def test_a_pipe_among_pictures_is_not_read(classified, tmp_path, capsys):  # noqa: F811
    os.mkfifo(tmp_path / "a.png")
    words = [str(classified / "run"), str(tmp_path)]
    assert "a.png" in refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", words))


def test_names_that_are_no_text_are_told_as_escapes(classified, tmp_path, capsys):  # noqa: F811
    Image.new("RGB", (16, 16)).save(tmp_path / os.fsdecode(b"\xff.png"))
    assert commands.main(CLASSIFICATION, "predict", [str(classified / "run"), str(tmp_path)]) == 0
    assert "\\udcff.png" in capsys.readouterr().out


def test_no_other_program_is_run_for_a_picture(classified, tmp_path, capsys):  # noqa: F811
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    )
    words = [str(classified / "run"), str(tmp_path / "a.png")]
    assert "no image" in refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", words))


NUMBERS = ["--steps=1000000000000000000", "--seed=٣", "--lr=1_0", "--clip=1e18", "--keep-decoded=-1", "--forget=" + "9" * 5000,
           "--forget=a\nb", "--forget=@/dev/null"]  # fmt: skip


@pytest.mark.parametrize("word", NUMBERS, ids=ids_of(NUMBERS))
def test_numbers_and_lists_that_mean_nothing(word, classified, tmp_path, capsys):  # noqa: F811
    words = test_scripts.swap_flags(classified, "--output-dir", str(tmp_path / "out"), word)
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "swap", words))


@pytest.mark.parametrize("line", ["hidden_dim = 10000000", "num_queries = 1000000000", "enc_layers = 100000000"])
def test_detectors_larger_than_the_machine(line, known, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.py").write_text(line)
    words = ["--data", known["data"], "-c", str(tmp_path / "c.py"), "--output-dir", str(tmp_path / "out")]
    refused(capsys, tmp_path, lambda: commands.main(DETECTION, "pretrain", words))


@pytest.mark.parametrize(
    "args", ["embed_dim=0", "depth=-1", "embed_dim=100000000", "depth=1000000000", "embed_dim=1000000,depth=1000"]
)
def test_classifiers_larger_than_the_machine(args, classified, tmp_path, capsys):  # noqa: F811
    words = ["--data", str(classified / "data"), "--model", "vit_tiny_patch16_224", "--model-args", args]
    words += ["--output-dir", str(tmp_path / "out")]
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "pretrain", words))


@pytest.mark.parametrize("key", ["MODEL.MASK_FORMER.HIDDEN_DIM", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"])
def test_segmenters_larger_than_the_machine(key, place, tmp_path, capsys):  # noqa: F811
    words = ["--config-file", str(place / "tiny.yaml"), "--data", str(place / "data"), "--set", key, "1000000000"]
    words += ["--output-dir", str(tmp_path / "out")]
    refused(capsys, tmp_path, lambda: commands.main(SEGMENTATION, "pretrain", words))
