"""Swaps as files: stacked, left out, merged; a base that is never written to."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from ks_classification.session import SESSION
from safetensors.torch import load_file
from test_prove import HERE, place, started  # noqa: F401  # a fixture

from common import adapters, lora
from common.adapters import __main__ as commands
from common.adapters import share, stack
from common.cli import main
from common.errors import UserError


@pytest.fixture(scope="module")
def runs(place):  # noqa: F811
    """Three more runs: on the same base one that forgets and one that learns the same class, and one on the first run."""
    more = {
        "side": ("base", ["--forget", "green"]),
        "twin": ("base", ["--learn", "white"]),
        "next": ("run", ["--forget", "blue"]),
    }
    for name, (base, flags) in more.items():
        argv = ["--data", place / "data", "--checkpoint", place / base, *flags, "--epochs", "1", "--batch-size", "6"]
        argv += [
            "--lora-rank",
            "3",
            "--lora-position",
            "all",
            "--method",
            "gs_lora",
            "--sparsity-weight",
            "0",
            "--allow-chance",
            *HERE,
            "--output-dir",
            place / name,
        ]
        assert started("swap", *argv) == 0
    return place


def answers(folder):
    model = adapters.merge(SESSION.load(folder, {}).base.model)
    with torch.no_grad():
        return model(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def deltas(folder):
    return {n: layer.delta().detach() for n, layer in lora.adapters(SESSION.load(folder, {}).base.model).items()}


def test_updates_of_a_stack_add_up_and_the_base_stays(runs, tmp_path):
    before = (runs / "base/model/model.safetensors").read_bytes()
    assert main(commands.body, ["apply", str(runs / "run"), str(runs / "side"), str(tmp_path / "both")]) == 0
    one, other, both = (deltas(p) for p in (runs / "run", runs / "side", tmp_path / "both"))
    assert set(both) == set(one) | set(other) and set(one) < set(other)
    for name, value in both.items():
        assert torch.allclose(value, other[name] + one.get(name, 0), atol=1e-6), name
    base = SESSION.load(tmp_path / "both", {}).base
    assert base.classes == ["red", "green", "blue", "black", "white"]
    head = SESSION.load(runs / "run", {}).base.model.head
    assert torch.equal(base.model.head.weight, head.weight) and torch.equal(base.model.head.bias, head.bias)
    assert (runs / "base/model/model.safetensors").read_bytes() == before
    record = json.loads((tmp_path / "both/config.json").read_text())
    assert record["identity"]["plan"]["groups"] == {
        "learn": ["white"],
        "forget": ["red", "green"],
        "retain": ["blue", "black"],
    }
    assert started("evaluate", tmp_path / "both", "--device", "cpu") == 0


def test_any_of_a_stack_can_be_left_out(runs, tmp_path):
    run, side, following = (str(runs / n) for n in ("run", "side", "next"))
    assert main(commands.body, ["apply", run, following, str(tmp_path / "two")]) == 0
    own, after = deltas(tmp_path / "two"), deltas(run)
    for name, value in deltas(following).items():
        assert torch.allclose(own[name], value + after.get(name, 0), atol=1e-6)
    assert main(commands.body, ["remove", str(tmp_path / "two"), "next", str(tmp_path / "first")]) == 0
    assert torch.equal(answers(tmp_path / "first"), answers(run))
    assert main(commands.body, ["apply", run, side, str(tmp_path / "three")]) == 0
    assert main(commands.body, ["remove", str(tmp_path / "three"), "run", str(tmp_path / "second")]) == 0
    assert torch.equal(answers(tmp_path / "second"), answers(side))


def test_a_sequence_gives_what_its_last_run_gives(runs, tmp_path):
    assert main(commands.body, ["apply", str(runs / "run"), str(runs / "next"), str(tmp_path / "two")]) == 0
    assert torch.allclose(answers(tmp_path / "two"), answers(runs / "next"), atol=1e-5)


def test_conflicts_are_errors(runs, tmp_path, capsys):
    for argv, message in (
        (["apply", runs / "run", runs / "twin", tmp_path / "x"], "both learned class 'white'"),
        (["apply", runs / "side", runs / "next", tmp_path / "x"], "another base"),
        (["remove", runs / "run", "side", tmp_path / "x"], "no swap 'side'"),
        (["apply", runs / "base", runs / "run", tmp_path / "x"], "holds no adapter"),
        (["apply", runs / "run", runs / "run/proof"], "exists already"),
        (["diff", runs / "run"], "takes 2"),
    ):
        assert main(commands.body, list(map(str, argv))) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def merged(run, file):
    """What `merge` writes, or the line that it refuses with."""
    base = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    code = main(commands.body, ["merge", str(run), str(file)])
    assert code == 2 or file.is_file()
    assert {path: path.read_bytes() for path in base} == base
    return load_file(file) if code == 0 else None


@pytest.mark.parametrize("run", ["side", "run", "next"])  # forgets; learns too; was made for the result of another
def test_merged_weights_answer_as_the_run_does(runs, tmp_path, run):
    model = SESSION.load(runs / "base", {}).base.model
    state = merged(runs / run, tmp_path / "m.safetensors")
    model.head = torch.nn.Linear(model.head.in_features, len(state["head.weight"]))
    model.load_state_dict(state)
    with torch.no_grad():
        found = model(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(found, answers(runs / run), atol=1e-5)


def on_base(run, base, folder):
    """A copy of a run whose record names another base."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "config.json").read_text())
    record["flags"]["checkpoint"] = str(base)
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def test_a_base_is_any_file_with_the_weights_of_the_swap(runs, tmp_path, capsys):
    state = load_file(runs / "base/model/model.safetensors")
    torch.save({"model": state | {"tied": state["head.weight"]}, "epoch": 3}, tmp_path / "plain.pth")
    torch.save({name: value + 0.01 for name, value in state.items()}, tmp_path / "other.pth")
    torch.save({f"vit.{name}": value for name, value in state.items()}, tmp_path / "renamed.pth")
    torch.save({name.replace("head.", "head.0."): value for name, value in state.items()}, tmp_path / "head.pth")
    found = merged(on_base(runs / "side", tmp_path / "plain.pth", tmp_path / "a"), tmp_path / "a.safetensors")
    expected = merged(runs / "side", tmp_path / "b.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert set(found) == {*expected, "tied"}
    for base, message in (("other.pth", "other base weights"), ("renamed.pth", "otherwise"), ("nowhere", "no file")):
        run = on_base(runs / "side", tmp_path / base, tmp_path / f"on-{base}")
        assert merged(run, tmp_path / "c.safetensors") is None and not (tmp_path / "c.safetensors").exists()
        assert message in capsys.readouterr().err
    learned = on_base(runs / "run", tmp_path / "head.pth", tmp_path / "on-head")
    assert merged(learned, tmp_path / "c.safetensors") is None  # or the file would keep the old head
    assert "has no head." in capsys.readouterr().err


def test_list_show_and_diff_tell_what_a_swap_is(runs, capsys):
    assert main(commands.body, ["list", str(runs / "run"), str(runs / "side")]) == 0
    table = capsys.readouterr().out.splitlines()
    sha = stack.read(runs / "run").info["base_sha256"]
    assert (
        len(table) == 3 and "white" in table[1] and "red" in table[1] and sha[:16] in table[1] and sha[:16] in table[2]
    )
    assert main(commands.body, ["show", str(runs / "run")]) == 0
    card = capsys.readouterr().out
    assert (
        card == (runs / "run/adapter/README.md").read_text()
        and card.startswith("---\nlibrary_name: peft")
        and sha in card
    )
    config = json.loads((runs / "run/adapter/adapter_config.json").read_text())
    assert config["revision"] == sha and config["base_model_name_or_path"] is None
    assert main(commands.body, ["diff", str(runs / "run"), str(runs / "run")]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [float(row.split()[-1]) for row in rows] == pytest.approx([0, 0]) and float(rows[0].split()[1]) > 0


def test_an_adapter_without_a_recorded_base_is_refused(runs, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "old")
    path = tmp_path / "old/adapter/swap.json"
    info = json.loads(path.read_text())
    del info["base_sha256"]
    info["base"]["mean_abs"] = list(info["base"]["mean_abs"].values())
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match="which base"):
        stack.read(tmp_path / "old")
    assert torch.equal(answers(tmp_path / "old"), answers(runs / "run"))  # but it loads as before


@pytest.fixture
def offline(monkeypatch):
    """What the hub was asked to do; nothing leaves."""
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append(("create", name, options["private"]))

        def create_commit(self, name, operations, **options):
            calls.append(("commit", name, {o.path_in_repo: o.path_or_fileobj for o in operations}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_push_prints_and_sends_only_with_yes(runs, offline, capsys):
    run = str(runs / "run")
    assert main(commands.body, ["push", run, "me/swap", "--license", "mit"]) == 0
    told = capsys.readouterr().out
    assert "nothing was sent" in told and "adapter/adapter_model.safetensors" in told and "license: mit" in told
    assert not offline and str(runs) not in told
    assert main(commands.body, ["push", run, "me/swap", "--yes", "--private"]) == 0
    (_, name, private), (_, _, files) = offline
    assert (name, private) == ("me/swap", True)
    assert set(files) == {"README.md", "config.json", *(f"adapter/{f}" for f in share.FILES)}
    assert not [file for file, data in files.items() if str(runs).encode() in data]
    assert main(commands.body, ["push", run, "swap"]) == 2 and main(commands.body, ["list", run, "--yes"]) == 2


def test_a_pulled_swap_is_a_run_folder(runs, tmp_path, monkeypatch):
    for file, data in share.contents(runs / "run").items():
        path = tmp_path / "hub" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **o: asked.append(name) or tmp_path / "hub")
    assert main(commands.body, ["pull", "me/swap", str(tmp_path / "mine")]) == 0
    record = json.loads((tmp_path / "mine/config.json").read_text())
    assert record["identity"]["plan"] and "output_dir" not in record["flags"] and asked == ["me/swap"]
    assert adapters.read(tmp_path / "mine/adapter")[0]["classes"]
    assert main(commands.body, ["pull", "me/swap", str(tmp_path / "mine")]) == 2
    images = torch.randn(2, 3, 16, 16)
    found = [
        SESSION.load(p, {"checkpoint": str(runs / "base")}) for p in ("hf:me/swap", tmp_path / "mine", runs / "run")
    ]
    with torch.no_grad():
        first, *others = (one.base.model(images) for one in found)
    assert all(torch.equal(first, other) for other in others) and found[0].groups == found[2].groups
