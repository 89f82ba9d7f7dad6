"""Settings chosen by Optuna: seeded, resumable, shared by workers, the same number of trials for every row."""

import contextlib
import json
import os
import signal
import socket
import sqlite3

import pytest
from processes import environment
from test_sweep import PATIENCE, counts, gate, held, start, wait_for, written

from common.errors import UserError
from common.sweep import tuning
from common.sweep.__main__ import body
from common.sweep.rows import read_sweep

optuna = pytest.importorskip("optuna")
FILE = """
output_dir: {out}
command: fake_run swap
flags: --gate $gate
set: {{gate: open}}
grid: {{method: [good, poor], seed: [0, 1]}}
tune:
  flags: --seed 9
  range: {{"*": {{lr: [0.01, 0.5, log]}}, "poor": {{order: [fltf, fftl]}}}}
"""


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def trials(out, states=(optuna.trial.TrialState.COMPLETE,)):
    """(row, flags, value) of the trials, in order."""
    found = []
    for name in ("good", "poor"):
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'tune.sqlite'}")
        found += [(name, t.params, t.value) for t in study.get_trials(states=states)]
    return found


def test_every_row_has_its_trials_and_the_best_flags_are_written(tmp_path, capsys):
    assert body([str(written(tmp_path, FILE)), "--tune", "4", "--jobs", "2"]) == 0
    found = trials(tmp_path / "out")
    assert [name for name, *_ in found] == ["good"] * 4 + ["poor"] * 4
    for _, params, value in found:  # of seed 9; fftl has 2 more
        expected = 99 + 2 * (params.get("order") == "fftl") - 100 * abs(params["lr"] - 0.1)
        assert value == pytest.approx(expected, abs=0.1)
    assert all(("order" in params) == (name == "poor") for name, params, _ in found)
    best = max(value for name, _, value in found if name == "good")
    assert f"# {best:.2f} in 4 trials" in (tmp_path / "out" / "tuned.yaml").read_text()
    runs = list((tmp_path / "out" / "tune").glob("*/done.json"))
    assert len(runs) == 8 and not list((tmp_path / "out").glob("good-seed*"))


def test_a_tuning_that_was_killed_proposes_what_an_undisturbed_one_does(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert body([str(written(tmp_path / "a", FILE)), "--tune", "3", "--jobs", "2"]) == 0
    killed, out = written(tmp_path / "b", FILE), tmp_path / "b" / "out"
    closed = gate(tmp_path)
    first = start(killed, "--tune", "3", "--set", f"gate={closed}")
    for name in held(out / "tune", 2):
        (closed / name).touch()
    wait_for(lambda: len(list(out.glob("tune/*/done.json"))) == 2)
    held(out / "tune", 2)  # of the second round
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    (closed / "all").touch()
    second = start(killed, "--tune", "3", "--set", f"gate={closed}")
    second.communicate(timeout=PATIENCE)
    assert second.returncode == 0 and trials(out) == trials(tmp_path / "a" / "out")
    assert max(c["starts"] for c in counts(out / "tune").values()) == 1


def test_two_workers_share_one_file_and_one_takes_up_what_the_other_had_when_it_was_killed(tmp_path):
    path, out = written(tmp_path, FILE), tmp_path / "out"
    closed = gate(tmp_path)  # so that neither comes to its end before the other has begun
    killed, worker = (start(path, "--tune", "5", "--set", f"gate={closed}") for _ in range(2))
    wait_for(lambda: has_begun(out, killed.pid))
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (closed / "all").touch()
    told = worker.communicate(timeout=PATIENCE)[1]
    assert worker.returncode == 0, told
    found = trials(out)
    assert sorted(name for name, *_ in found) == ["good"] * 5 + ["poor"] * 5
    assert len({json.dumps(params) for _, params, _ in found}) == 10, "no trial was made twice"
    assert trials(out, (optuna.trial.TrialState.FAIL,)), "the killed one had begun some"


def test_a_study_file_is_whole_from_its_first_moment_on(tmp_path, monkeypatch):
    seen = []
    storage = optuna.storages.RDBStorage

    def made(address):
        opened = storage(address)
        seen.append((tmp_path / "x").exists())
        return opened

    (tmp_path / ".x.part").write_bytes(b"left by a command that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages, "RDBStorage", made)
        tuning._create(tmp_path / "x")
    assert seen == [False] and [p.name for p in tmp_path.iterdir()] == ["x"]
    tables = sqlite3.connect(tmp_path / "x").execute("select name from sqlite_master where type = 'table'").fetchall()
    assert {"studies", "trials", "trial_values", "alembic_version"} <= {name for (name,) in tables}
    optuna.create_study(study_name="kept", storage=f"sqlite:///{tmp_path / 'x'}")
    tuning._create(tmp_path / "x")
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'x'}") == ["kept"]


def test_a_trial_of_a_worker_that_was_killed_before_it_had_put_its_name_on_it_is_taken_up(tmp_path):
    path = written(tmp_path, FILE)
    (tmp_path / "out").mkdir(exist_ok=True)
    study = optuna.create_study(study_name="good", storage=f"sqlite:///{tmp_path / 'out' / 'tune.sqlite'}")
    study.ask()
    assert body([str(path), "--tune", "1"]) == 0
    assert [name for name, *_ in trials(tmp_path / "out")] == ["good", "poor"]


def has_begun(out, pid):
    """Whether a worker has a trial in progress."""
    if not (out / "tune.sqlite").exists():
        return False
    with contextlib.suppress(KeyError):  # no such study yet
        for name in ("good", "poor"):
            study = optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'tune.sqlite'}")
            running = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
            if any(t.user_attrs.get("worker", ["", 0])[1] == pid and t.params for t in running):
                return True
    return False


def test_a_worker_that_ends_first_tells_of_the_trials_that_still_run(tmp_path):
    study = optuna.create_study(direction="maximize")
    space = {"lr": optuna.distributions.FloatDistribution(0.1, 1)}
    assert tuning._best(study) == "# no trial has a result"
    study.tell(study.ask(space), 90.0)
    running = study.ask(space)
    assert tuning._best(study).endswith("# 90.00 in 1 trials; 1 still run elsewhere")
    study.tell(running, state=optuna.trial.TrialState.FAIL)  # it was killed, and is no trial
    assert tuning._best(study).endswith("# 90.00 in 1 trials")


def test_a_trial_without_a_result_counts_as_one(tmp_path):
    text = FILE.replace("method: [good, poor]", "method: {{good: --method good, poor: --bad}}")
    assert body([str(written(tmp_path, text)), "--tune", "2"]) == 0
    assert len(trials(tmp_path / "out")) == 2
    assert len(trials(tmp_path / "out", (optuna.trial.TrialState.PRUNED,))) == 2
    assert "no trial has a result" in (tmp_path / "out" / "tuned.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"*": ', '"x*": '), "no `range` fits row 'good'"),
        (("[0.01, 0.5, log]", "0.1"), "Expected a list"),
        (("[0.01, 0.5, log]", "[0.5, 0.01, log]"), "low below high"),
        (("[0.01, 0.5, log]", "[1e-2, 1e-1, log]"), "needs a point"),
        (("flags: --seed 9", "falgs: --seed 9"), "unknown field `falgs`"),
    ],
)
def test_a_wrong_tune_is_one_line(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        body([str(written(tmp_path, FILE.replace(*change))), "--tune", "2"])


def test_only_what_a_dead_process_left_is_taken_up(tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'x.sqlite'}")
    for host, pid in ((socket.gethostname(), os.getppid()), ("another", 1), (socket.gethostname(), 2**22 + 1)):
        trial = study.ask()
        trial.suggest_float("lr", 0, 1)
        trial.set_user_attr("worker", [host, pid])
    tuning._take_up_the_dead(study)
    assert [t.state.name for t in study.get_trials()] == ["RUNNING", "RUNNING", "FAIL", "WAITING"]
    assert study.ask().suggest_float("lr", 0, 1) == study.get_trials()[2].params["lr"]


def test_ranges_of_all_fitting_patterns_are_joined(tmp_path):
    found = read_sweep(written(tmp_path, FILE), "", {}, [])
    spaces = [list(tuning.space_of(row, found.tune)) for row in found.rows[::2]]
    assert spaces == [["lr"], ["lr", "order"]]
