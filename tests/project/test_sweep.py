"""Sweeps: rows follow from the file, what is done is skipped, what was killed goes on, what fails is named."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_run import HELD
from processes import environment

from common import cli
from common.errors import UserError
from common.sweep import engines
from common.sweep.__main__ import body
from common.sweep.check import check_flags
from common.sweep.rows import HERE, Row, read_sweep

FILE = """
output_dir: {out}
command: fake_run swap
flags: --gate $gate
set: {{gate: open}}
grid:
  method: [good, poor]
  order: [fltf, fftl]
  seed: [0, 1, 2]
"""


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def written(folder, text=FILE, name="sweep.yaml", **more):
    path = folder / name
    path.write_text(text.format(out=folder / "out", **more))
    return path


def names(path, **given):
    return [row.name for row in read_sweep(path, "", given, []).rows]


# ---- the file ------------------------------------------------------------------------------------------------


def test_rows_are_the_product_of_lists_and_names_with_zipped_columns_as_one_axis(tmp_path):
    text = """
output_dir: {out}
command: fake_run swap
zip: {{lr: [0.1, 0.2], order: [fltf, fftl]}}
grid:
  method: {{plain: --method finetune, "odd / name": --method lwf --trains all}}
  head: [true, false]
  seed: [3]
"""
    rows = read_sweep(written(tmp_path, text), "", {}, []).rows
    assert len(rows) == 8
    assert rows[0].name == "lr0.1-fltf-plain-headTrue-seed3" and rows[0].label == "lr0.1-fltf-plain-headTrue"
    assert rows[-1].name == "lr0.2-fftl-odd-name-headFalse-seed3"
    assert rows[-1].words[:2] == ("-m", "fake_run")
    end = ("--output-dir", str(tmp_path / "out" / rows[-1].name))
    flags = "swap --lr 0.2 --order fftl --method lwf --trains all --no-head --seed 3"
    assert rows[-1].words[2:] == (*flags.split(), *end)


def test_a_script_of_this_repository_is_run_as_such(tmp_path):
    text = "output_dir: {out}\ncommand: image-classification swap\ngrid: {{seed: [0]}}"
    words = read_sweep(written(tmp_path, text), "", {}, []).rows[0].words
    assert words[0].endswith("image-classification/swap.py") and words[1] == "--seed"


def test_names_in_texts_are_replaced_and_files_extend_others(tmp_path):
    base = "command: fake_run swap\nset: {{pause: 1, where: $out/x}}\ngrid: {{seed: [0], method: [a, b]}}\ncolumns: [learned]"
    written(tmp_path, base, "base.yaml")
    text = "extends: base.yaml\noutput_dir: {out}\nset: {{pause: 2}}\nflags: --pause $pause --in $where\ngrid: {{order: [fltf], seed: [1]}}"
    found = read_sweep(written(tmp_path, text), "", {"where": "a b"}, [])
    assert [row.name for row in found.rows] == ["fltf-seed1-a", "fltf-seed1-b"] and found.columns == ["learned"]
    assert found.rows[0].words[3:7] == ("--pause", "2", "--in", "a b")


def test_rows_are_picked_by_pattern(tmp_path):
    rows = read_sweep(written(tmp_path), "", {}, ["good-*-seed0", "poor-fftl-*"]).rows
    assert len(rows) == 5
    with pytest.raises(UserError, match="no row is called 'fine-"):
        read_sweep(written(tmp_path), "", {}, ["fine-*"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("grid:", "extends: sweep.yaml\ngrid:"), "leads back to itself"),
        (
            ("grid:", "grid:\n" + "".join(f"  a{i}: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" for i in range(12))),
            "rows; at most",
        ),
        (("seed: [0, 1, 2]", "seed: [" + "a" * 300 + "]"), "more than 200 letters"),
        (("seed: [0", "a b: [0"), "is no flag"),
        (("command: fake_run swap", "command: ' '"), "it needs `command`"),
        (("command: fake_run swap", "command: [a]"), r"Expected text, got a list - at .\$.command"),
        (("command: fake_run swap", "command: a '"), "No closing quotation"),
        (("gate: open", "gate: $gate"), "lead back to themselves"),
        (("gate: open", "gate: " + "$b" * 3000 + ", b: " + "$c" * 3000 + ", c: x"), "more than 100,000"),
        (("gate: open", "gate: [1]"), r"at .\$.set"),
        (("grid:", "only: {{a: b}}\ngrid:"), r"at .\$.only"),
        (("grid:", "grids:"), "unknown key 'grids'"),
        (("command: fake_run swap", ""), "it needs `command`"),
        (("[good, poor]", "good"), r"Expected .* - at .\$.grid"),
        (("[good, poor]", "[good, GOOD]"), "two rows are called 'GOOD-fltf-seed0'"),
        (("$gate", "$gaet"), r"what is \$gaet\? Add --set gaet=VALUE"),
        (("  seed: [0, 1, 2]", "zip: {{lr: [1, 2], bound: [1]}}"), "have 2, 1 values"),
        (("set:", "prepare: fake_run swap\nset:"), "needs --output-dir"),
    ],
)
def test_a_wrong_file_is_one_line(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        names(written(tmp_path, FILE.replace(*change)))


def test_a_value_that_the_file_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no \$pose; under `set` it has: gate"):
        names(written(tmp_path), pose="1")


# ---- carrying out --------------------------------------------------------------------------------------------


def start(path, *flags):
    command = [sys.executable, "-m", "common.sweep", str(path), "--jobs", "2", *flags]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counts(out):
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("*/count.json"))}


PATIENCE = 600  # seconds; only a test that fails takes them


def wait_for(what, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def held(out, count):
    """The names of the rows that stand before their gate, once there are `count` of them; see `fake_run`."""
    return wait_for(lambda: len(rows := [n for n, c in counts(out).items() if c["steps"] == HELD]) >= count and rows)


def gate(folder):
    """A gate for `--set gate=FOLDER`; `(gate / NAME).touch()` lets a row go on."""
    (folder / "gate").mkdir()
    return folder / "gate"


def test_a_sweep_that_was_killed_and_stopped_makes_the_table_of_an_undisturbed_one(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    text = FILE.replace("[0, 1, 2]", "[0, 1]")
    whole, killed = written(tmp_path / "a", text), written(tmp_path / "b", text)
    assert body([str(whole), "--jobs", "4"]) == 0
    out, closed = tmp_path / "b" / "out", gate(tmp_path)
    first = start(killed, "--set", f"gate={closed}")
    early = held(out, 2)
    os.kill(first.pid, signal.SIGKILL)  # its rows go on alone
    first.communicate()
    second = start(killed, "--set", f"gate={closed}")
    for name in early:
        (closed / name).touch()
    wait_for(lambda: len(list(out.glob("*/done.json"))) == 2)
    held(out, 2)
    second.send_signal(signal.SIGTERM)
    _, told = second.communicate(timeout=PATIENCE)
    assert second.returncode == 143 and "the same command goes on from there" in told
    assert not list(out.glob("*/run.lock")), "the rows had time to save"
    (closed / "all").touch()
    third = start(killed, "--set", f"gate={closed}")
    third.communicate(timeout=PATIENCE)
    assert third.returncode == 0
    found = counts(out)
    assert len(found) == 8 and all(c["steps"] == 10 for c in found.values())
    starts = sorted(c["starts"] for c in found.values())
    assert starts == [1] * 6 + [2] * 2, "only what SIGTERM stopped was started again"
    for name in ("table.md", "table.csv"):
        assert (out / name).read_bytes() == (tmp_path / "a" / "out" / name).read_bytes()


def test_a_finished_sweep_runs_nothing_and_its_tables_hold_mean_and_spread(tmp_path, capsys):
    path = written(tmp_path)
    assert body([str(path), "--jobs", "4"]) == 0
    before = counts(tmp_path / "out")
    assert body([str(path)]) == 0 and counts(tmp_path / "out") == before
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["good-fftl", "poor-fftl", "good-fltf", "poor-fltf"]  # best H first
    assert rows[0]["seeds"] == "0, 1, 2" and float(rows[0]["H ↑"]) == 93.0 and float(rows[0]["H ↑ (std)"]) == 1.0
    assert "| good-fftl | 0, 1, 2 | 83.0 ± 1.0 | 6.0 ± 1.0 |" in (tmp_path / "out" / "table.md").read_text()
    assert len(json.loads((tmp_path / "out" / "figures.json").read_text())) == 12
    assert "good-fftl" in (tmp_path / "out" / "report.html").read_text()
    picture = (tmp_path / "out" / "scores.svg").read_text()
    assert picture.count(">good-fftl</text>") == 3 and picture.count('class="line"') == 12  # a panel per group


def test_a_row_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    text = FILE.replace("[good, poor]", "{{good: --method good, bad: --bad, wrong: --nonsense}}").replace(
        "[0, 1, 2]", "[0]"
    )
    assert body([str(written(tmp_path, text)), "--jobs", "3"]) == 1
    err = capsys.readouterr().err
    assert "failed: bad-fltf-seed0: this row is bad; take another.\n" in err
    assert "failed: wrong-fftl-seed0: " in err and "unrecognized arguments: --nonsense" in err
    assert "good-fltf" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--lrr 0.1", r"row one: unrecognized arguments: --lrr 0.1 \(did you mean --lr\?\)"),
        ("--lr fast", "row one: argument --lr: takes a number, got 'fast'"),
        ("--order xftl", "row one: `--order` must be one of"),
        ("--order fltf", ""),
    ],
)
@pytest.mark.parametrize("command", ["-m ks_classification swap", "image-classification/swap.py"])
def test_flags_that_there_are_not_are_found_before_anything_runs(command, flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    row = Row("one", "one", (*command.split(), "--learn", "a", *flags.split(), "--output-dir", "x"), tmp_path / "x")
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        check_flags([row])


def test_a_done_row_of_another_command_is_not_taken_for_this_one(tmp_path):
    assert body([str(written(tmp_path)), "--only", "good-fltf-seed0"]) == 0
    with pytest.raises(UserError, match="was made by another command"):
        body([str(written(tmp_path)), "--only", "good-fltf-seed0", "--flags", "--lr 0.2"])


def test_what_comes_before_is_done_once_and_its_failure_ends_the_sweep(tmp_path):
    text = FILE.replace("set:", "prepare: fake_run swap --output-dir $out/base{bad}\nset:")
    path = written(tmp_path, text, bad="")
    for _ in range(2):
        assert body([str(path), "--only", "good-fltf-seed0"]) == 0
    assert counts(tmp_path / "out")["base"]["starts"] == 1
    with pytest.raises(UserError, match="failed: this row is bad"):
        body([str(written(tmp_path, text, bad="2 --bad"))])


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path, capsys):
    assert body([str(written(tmp_path)), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and lines[0].startswith(
        "python -m fake_run swap --gate open --method good --order fltf --seed 0 "
    )
    assert not (tmp_path / "out").exists()


def test_threads_are_divided_among_the_rows(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(engines.Task, "__call__", lambda self: seen.append(self.threads) or "")
    rows = read_sweep(written(tmp_path), "", {}, []).rows
    for given, jobs, threads in (("8", 4, 2), ("1", 3, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        list(engines.local(rows, engines.EngineConfig(jobs=jobs), tmp_path))
        assert set(seen) == {threads}
        seen.clear()


# ---- a scheduler ---------------------------------------------------------------------------------------------


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(body, [str(written(tmp_path)), "--engine", "slurm"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_extra_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install submitit"):
        body([str(written(tmp_path)), "--engine", "slurm"])


def test_the_batch_script_asks_for_what_was_asked_for(tmp_path, capsys):
    pytest.importorskip("submitit")
    flags = "--engine slurm --dry-run --partition fast --gpus 2 --nodes 2 --minutes 30 --jobs 5 --cpus 8"
    assert body([str(written(tmp_path)), *flags.split()]) == 0
    script = capsys.readouterr().out
    wanted = (
        "array=0-11%5",
        "partition=fast",
        "gpus-per-node=2",
        "nodes=2",
        "time=30",
        "cpus-per-task=8",
        "signal=USR2@90",
    )
    assert all(f"#SBATCH --{line}\n" in script for line in wanted), script


def test_jobs_of_submitit_that_were_stopped_make_the_same_table(tmp_path):
    """Its executor for one machine; no Slurm cluster was there to try."""
    pytest.importorskip("submitit")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    only = ["--only", "good-fltf-seed0", "good-fltf-seed1"]
    assert body([str(written(tmp_path / "a")), *only]) == 0
    path, out = written(tmp_path / "b"), tmp_path / "b" / "out"
    flags = ["--engine", "submitit-local", "--minutes", "5", *only]
    stopped = start(path, *flags, "--set", f"gate={gate(tmp_path)}")
    held(out, 2)
    stopped.send_signal(signal.SIGTERM)
    assert "the same command goes on from there" in stopped.communicate(timeout=PATIENCE)[1]
    assert stopped.returncode == 143
    assert not list(out.glob("*/run.lock")) and not list(out.glob("*/done.json")), "the rows were saved and ended"
    assert body([str(path), "--jobs", "2", *flags]) == 0
    assert [c["starts"] for c in counts(out).values()] == [2, 2]
    for name in ("table.md", "table.csv"):
        assert (out / name).read_bytes() == (tmp_path / "a/out" / name).read_bytes()


def test_several_nodes_need_a_scheduler(tmp_path):
    for engine in ("local", "submitit-local"):
        with pytest.raises(UserError, match="`--nodes 2` needs --engine slurm"):
            body([str(written(tmp_path)), "--engine", engine, "--nodes", "2"])


@pytest.mark.filterwarnings("ignore:.*Popen:pytest.PytestUnraisableExceptionWarning")  # the job ends while it waits
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_job_about_to_be_preempted_is_saved_and_queued_again(tmp_path, monkeypatch):
    """As Slurm and submitit do it: a signal to every process of the job, and a handler of it, while the main thread waits
    for the row, that ends the job."""
    submitit = pytest.importorskip("submitit")
    closed = gate(tmp_path)
    row = read_sweep(written(tmp_path), "", {"gate": str(closed)}, ["good-fltf-seed0"]).rows[0]
    task, again = engines.Task(row, engines.EngineConfig(engine="slurm"), tmp_path / "log.txt"), []

    def preempt(*_):
        again.append(task.checkpoint())
        raise SystemExit

    def ask():
        held(tmp_path / "out", 1)
        os.kill(task.process.pid, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, preempt)
    try:
        threading.Thread(target=ask).start()
        with pytest.raises(SystemExit):
            task()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert isinstance(again[0], submitit.helpers.DelayedSubmission)
    assert not row.done and not (row.folder / "run.lock").exists()
    (closed / "all").touch()
    assert again[0].result() == "" and row.done
    assert counts(tmp_path / "out")[row.name] == {"steps": 10, "starts": 2}
