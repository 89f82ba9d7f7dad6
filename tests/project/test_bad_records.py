"""Run folders and adapters that were changed by hand, moved or mixed up: each is one line, and nothing is written."""

import json
import shutil

import pytest
import test_scripts
from PIL import Image
from refusals import CLASSIFICATION, DEEP, ids_of, offline, refused  # noqa: F401
from safetensors.torch import save as to_bytes
from test_scripts import place as classified  # noqa: F401

from common import adapters, cli, commands
from common.report.__main__ import body as report

# ---- prove -----------------------------------------------------------------------------------------------------------

PROVED = [("config.json", "[]"), ("config.json", DEEP),
          ("adapter/swap.json", "[]"), ("adapter/adapter_model.safetensors", "x"), ("split.json", "[]"), ("split.json", "\x00")]  # fmt: skip


@pytest.mark.parametrize("file, text", PROVED, ids=ids_of(range(len(PROVED))))
def test_prove_of_damaged_runs(file, text, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    (run / file).write_bytes(text.encode("latin1"))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "prove", [str(run), "--device", "cpu"]))


IDENTITY = {
    "a list": lambda identity: identity.update(more=[1]),
    "a group": lambda identity: identity["plan"]["groups"].update(more=["nothing"]),
    "a line": lambda identity: identity["plan"]["groups"].update({"a\nb": ["nothing"]}),
    "another step": lambda identity: identity["plan"].update(steps=[["learn", ["nothing"]]]),
    "another domain": lambda identity: identity.update(domain="detection"),
}


@pytest.mark.parametrize("verb", ["prove", "evaluate", "export"])
@pytest.mark.parametrize("kind", IDENTITY)
def test_an_identity_changed_by_hand_is_refused_before_anything_is_trained(kind, verb, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    IDENTITY[kind](record["identity"])
    (run / "config.json").write_text(json.dumps(record))
    words = [str(run), *([str(tmp_path / "x.pth")] if verb == "export" else ["--device", "cpu"])]
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, verb, words))


@pytest.mark.parametrize("name", ["adapter", "model", "phases", "config.json"])
def test_what_is_in_the_way_of_results_is_found_before_training(name, classified, tmp_path, capsys):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).mkdir() if name.endswith("json") else (tmp_path / "out" / name).write_text("x")
    words = test_scripts.swap_flags(classified, "--output-dir", str(tmp_path / "out"))
    refused(capsys, tmp_path / "out", lambda: commands.main(CLASSIFICATION, "swap", words))


def test_curves_that_there_are_not_are_refused_before_scoring(classified, tmp_path, capsys):  # noqa: F811
    words = [str(classified / "run"), "--curves", str(tmp_path / "a.svg"), "--device", "cpu"]
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "evaluate", words))


@pytest.mark.parametrize(
    "flags",
    [{"data": "cifar10", "cache_dir": "{}"}, {"checkpoint": "hf-hub:a/b"}, {"data": "hf:a/b"}, {"data": 5}],
    ids=str,
)
def test_prove_fetches_nothing_because_a_run_folder_says_so(flags, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["flags"] |= {k: v.format(tmp_path / "x") if isinstance(v, str) else v for k, v in flags.items()}
    (run / "config.json").write_text(json.dumps(record))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "prove", [str(run), "--device", "cpu"]))


def test_references_fetch_nothing_because_the_record_of_a_base_says_so(classified, tmp_path, capsys):  # noqa: F811
    run, base = (shutil.copytree(classified / name, tmp_path / name) for name in ("run", "base"))
    for folder, changes in (
        (run, {"checkpoint": str(base)}),
        (base, {"data": "cifar10", "cache_dir": str(tmp_path / "x")}),
    ):
        record = json.loads((folder / "config.json").read_text())
        record["flags"] |= changes
        (folder / "config.json").write_text(json.dumps(record))
    words = [str(run), "--device", "cpu"]
    assert "--data cifar10" in refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "prove", words))


CHANGES = {
    "rank": lambda info: next(iter(info["layers"].values())).update(rank=10**9),
    "parts": lambda info: next(iter(info["layers"].values())).update(parts=7),
    "scale": lambda info: next(iter(info["layers"].values())).update(scale=1e300),
    "rows": lambda info: info.update(rows={name: [10**6] for name in info["rows"]}),
    "order": lambda info: info.update(classes=info["classes"][::-1]),
    "twice": lambda info: info.update(classes=[info["classes"][0]] * len(info["classes"])),
    "none": lambda info: info.update(classes=[]),
    "many": lambda info: info.update(classes=[*info["classes"], "x"]),
    "plan": lambda info: info.update(plan="x"),
    "stack": lambda info: info.update(stack="x"),
    "rows below 0": lambda info: info.update(rows={name: [-1] for name in info["rows"]}),
}


@pytest.mark.parametrize("kind", [*CHANGES, "nan"])
def test_adapters_that_do_not_fit(kind, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    info, tensors = adapters.read(run / "adapter")
    if kind == "nan":
        data = to_bytes({name: value * float("nan") for name, value in tensors.items()})
        (run / "adapter" / adapters.WEIGHTS).write_bytes(data)
        info["weights"] = adapters.digest(data)
    else:
        CHANGES[kind](info)
    (run / "adapter" / adapters.SWAP).write_text(json.dumps(info))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "predict", [str(run), str(tmp_path / "a.png")]))


@pytest.mark.parametrize("threads", ["x", -5, 10**9])
def test_threads_of_a_record(threads, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"threads": threads}))
    refused(capsys, tmp_path, lambda: commands.main(CLASSIFICATION, "evaluate", [str(run), "--device", "cpu"]))


# ---- reports -----------------------------------------------------------------------------------------------------------

EDITS = [
    ("config.json", ["phases", 0, "target"], 5), ("config.json", ["phases", 1, "groups", 0], 7), ("config.json", ["phases", 1, "index"], 9),
    ("config.json", ["phases", 0, "action"], "drop"), ("config.json", ["phases", 1, "groups"], ["nothing"]), ("config.json", ["versions"], [1]),
    ("config.json", ["parameters", "total"], 0), ("config.json", ["identity", "train"], 5), ("config.json", ["machine"], "x"),
    ("details.json", ["0", "learn", "answers", "white"], [None]), ("details.json", ["1", "retain", "answers", "green", "green"], {}),
    ("details.json", ["axes"], ["x"]), ("done.json", ["outputs_computed"], "x"), ("done.json", ["seconds"], None),
    ("metrics.jsonl", [0, "step"], None), ("metrics.jsonl", [0, "per_class"], [1]), ("metrics.jsonl", [-1, "spill", "red"], 5),
    ("metrics.jsonl", [-1, "measures"], {"h_mean": "x"}), ("steps.jsonl", [0, "loss"], "x"), ("gallery.json", ["before", 0, "correct"], "x"),
]  # fmt: skip


@pytest.mark.parametrize("file, place, value", EDITS, ids=ids_of(EDITS))
def test_reports_of_records_changed_by_hand(file, place, value, classified, tmp_path, capsys):  # noqa: F811
    run = shutil.copytree(classified / "run", tmp_path / "run")
    text = (run / file).read_text()
    content = entry = list(map(json.loads, text.splitlines())) if file.endswith("l") else json.loads(text)
    for key in place[:-1]:
        entry = entry.setdefault(key, {}) if isinstance(entry, dict) else entry[key]
    entry[place[-1]] = value
    (run / file).write_text("\n".join(map(json.dumps, content)) + "\n" if file.endswith("l") else json.dumps(content))
    refused(capsys, tmp_path, lambda: cli.main(report, [str(run), "--html", str(tmp_path / "page.html")]))
