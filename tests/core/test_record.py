"""Run folders: whole files or nothing, one run per folder, one line for a full disk."""

import errno
import json
import os

import pytest
from toy_run import start

from common import cli
from common.errors import UserError
from common.record import (
    METRICS,
    STEPS,
    RecordConfig,
    Run,
    first_difference,
    open_sinks,
    read_json,
    read_lines,
    write_bytes,
    write_json,
)


def hidden(folder):
    return [p for p in folder.rglob(".*") if p.is_file()]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"first")
    assert path.read_bytes() == b"first" and path.stat().st_mode & 0o777 == 0o644
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError) as found:
                write_bytes(path, b"second")
        assert found.value.errno == errno.ENOSPC and found.value.filename == str(path)
        assert path.read_bytes() == b"first" and not hidden(tmp_path)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/.file.tmp")


def test_an_appended_line_is_whole_or_taken_back(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.append(METRICS, [{"a": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.append(METRICS, [{"a": 2}, {"a": 3}])
    assert read_lines(tmp_path / METRICS) == [{"a": 1}]
    run.append(METRICS, [{"a": 4}])
    assert read_lines(tmp_path / METRICS) == [{"a": 1}, {"a": 4}]


def test_lines_are_cut_back_and_half_lines_dropped(tmp_path):
    run, path = Run(tmp_path), tmp_path / METRICS
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    assert run.truncate(METRICS, 1) == [{"a": 1}] and path.read_text() == '{"a": 1}\n'
    with pytest.raises(UserError, match="1 whole lines where 2 were saved"):
        run.truncate(METRICS, 2)
    assert run.truncate(STEPS, 0) == [] and read_lines(tmp_path / "none") == []


def test_a_folder_belongs_to_one_run(tmp_path):
    run = Run(tmp_path / "run")
    identity = {"train": {"lr": 0.1, "names": ("a", "b")}}
    assert run.open(identity, {"note": 1}, overwrite=False) is False
    run.append(METRICS, [{"a": 0}])
    assert run.open(identity, {"note": 2}, overwrite=False) is True  # what is only recorded may differ
    with pytest.raises(UserError, match=r"holds a run with train.lr 0.1, this command has 0.2; .* --overwrite"):
        run.open({"train": {"lr": 0.2, "names": ["a", "b"]}}, {}, overwrite=False)
    run.append(METRICS, [{"a": 1}])
    (run.folder / "adapter").mkdir()
    (run.folder / "adapter" / "swap.json").write_text("{}")
    assert run.open({"train": {"lr": 0.2}}, {}, overwrite=True) is False
    assert not run.path(METRICS).exists() and not run.path("adapter/swap.json").exists()
    assert read_json(run.path("config.json"))["identity"] == {"train": {"lr": 0.2}}


def test_a_run_that_stopped_before_its_first_score_gives_way_to_a_changed_command(tmp_path):
    run = Run(tmp_path / "run")
    run.open({"train": {"lr": 0.1}}, {}, overwrite=False)
    run.path(METRICS).touch()  # the disk was full at the first line
    (run.folder / "model").mkdir()
    (run.folder / "model" / "model.safetensors").write_text("mine")
    run.check({"train": {"lr": 0.2}})
    assert run.open({"train": {"lr": 0.2}}, {}, overwrite=False) is False
    assert read_json(run.path("config.json"))["identity"] == {"train": {"lr": 0.2}}
    assert run.path("model/model.safetensors").read_text() == "mine", "no run of ours wrote it"


def test_a_fresh_run_leaves_files_that_are_not_its_own(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("mine too")
    Run(tmp_path).open({}, {}, overwrite=False)
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "model" / "model.safetensors").exists()


def test_leftovers_of_a_killed_write_are_swept(tmp_path):
    run = Run(tmp_path)
    run.open({"a": 1}, {}, overwrite=False)
    (tmp_path / "adapter").mkdir()
    for name in (".state.pt.x1.part", "adapter/.swap.json.y2.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".gitignore").write_text("*")
    run.open({"a": 1}, {}, overwrite=False)
    assert [p.name for p in hidden(tmp_path)] == [".gitignore"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("a.b", 1, 2)),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", 2, None)),
        ({"a": [1, 2]}, {"a": [2, 1]}, ("a", [1, 2], [2, 1])),
        ({"a": {}}, {"a": 3}, ("a", {}, 3)),
    ],
)
def test_the_first_difference_is_named(old, new, found):
    assert first_difference(old, new) == found


def test_json_that_is_damaged_or_missing_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match="is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"a": float("inf"), "path": tmp_path})
    assert json.loads((tmp_path / "c.json").read_text())["path"] == str(tmp_path)


def test_a_logger_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_sinks(Run(tmp_path), RecordConfig(wandb="project"), "x")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        open_sinks(Run(tmp_path), RecordConfig(tensorboard=True), "x")


# ---- a full disk at every write of a run ---------------------------------------------------------------------

CASE = {
    "domain": "classification", "method": "gs_lora", "order": "fltf",
    "settings": {"steps": 2, "batch_size": 4, "save_every": 0},
}  # fmt: skip


class Disk:
    """Stands in for os.fsync and os.replace; from operation number `at` on, the disk is full."""

    def __init__(self, patch, at):
        self.at, self.count = at, 0
        patch.setattr(os, "fsync", self.watched(lambda handle: None))
        patch.setattr(os, "replace", self.watched(os.replace))

    def watched(self, function):
        def call(*args):
            self.count += 1
            if self.at and self.count >= self.at:
                full()
            return function(*args)

        return call


def run(folder):
    return cli.main(lambda argv: start(CASE, folder).swap() and None, [])


def test_a_full_disk_ends_any_run_in_one_line_and_loses_nothing(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        disk = Disk(patch, 0)
        assert run(tmp_path / "whole") == 0
    expected = {n: (tmp_path / "whole" / n).read_bytes() for n in (METRICS, STEPS, "adapter/adapter_model.safetensors")}
    for at in range(1, disk.count + 1, 6):
        capsys.readouterr()
        folder = tmp_path / f"full{at}"
        with monkeypatch.context() as patch:
            Disk(patch, at)
            assert run(folder) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("phase ")]
        assert len(errors) == 1 and "No space left on device; free space" in errors[0] and str(folder) in errors[0]
        assert not hidden(folder)
        for name in (METRICS, STEPS):
            text = (folder / name).read_text() if (folder / name).exists() else ""
            assert text == "" or text.endswith("\n")
        assert run(folder) == 0  # once there is room again
        assert {name: (folder / name).read_bytes() for name in expected} == expected


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_one_line(error, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error), "x")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert run(tmp_path) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "config.json" in message
