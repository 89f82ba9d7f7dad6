"""A run that is killed at any moment and started again ends with the bits of an undisturbed one."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from processes import TOY_RUN, environment
from toy_run import start

from common import cli
from common.adapters import WEIGHTS
from common.record import METRICS, STEPS, read_lines


def scenario(name, method="gs_lora", order="fltf", domain="classification", **settings):
    defaults = {"steps": 5, "batch_size": 4, "accumulate": 2, "save_every": 6, "eval_every": 1, "gallery": 1}
    return {
        "name": name, "domain": domain, "method": method, "order": order, "dropout": 0.1, "kills": 3,
        "settings": {**defaults, **settings},
    }  # fmt: skip


SCENARIOS = [
    scenario("continue"),
    scenario("stack", order="flf", lora_between_phases="stack", lora_position="all"),
    scenario("carry", order="lfl", carry_optimizer=True, schedule_per_epoch=True),
    scenario("every step", domain="detection", save_every=0),
    scenario("proximal", domain="segmentation", proximal=True, sparsity_weight=0.5),
    scenario("finetune", "finetune", order="fftl", domain="segmentation"),
    scenario("retrain", "retrain"),
    scenario("data guard", "mask_replay", order="fftl", guard="data"),
    scenario("subspace guard", order="fftl", guard="subspace", lora_position="all"),
    scenario(
        "settled", "mask_replay", until="settled", settled_window=2, settled_share=1.0, settled_change=9.0, steps=9
    ),
    scenario("averaged", "finetune", domain="detection", average_decay=0.9, save_every=2),
    {**scenario("interrupted"), "signal": "SIGINT"},
    {**scenario("preempted"), "signal": "SIGTERM"},
    {**scenario("hung up"), "signal": "SIGHUP"},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder with every scenario run undisturbed (.whole) and killed (.killed)."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "scenarios.json").write_text(json.dumps(SCENARIOS))
    command = [sys.executable, TOY_RUN, "kill", str(folder / "scenarios.json"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [s["name"] for s in SCENARIOS])
def test_a_killed_run_ends_as_an_undisturbed_one(name, results):
    statuses = json.loads((results / f"{name}.json").read_text())
    log = (results / f"{name}.killed.stderr").read_text()
    disturbed = {"interrupted": 130 << 8, "preempted": 143 << 8, "hung up": 143 << 8}.get(name, signal.SIGKILL)
    if disturbed == 143 << 8:  # before there is a state to save, the signal ends the process
        statuses = [disturbed if status in (signal.SIGTERM, signal.SIGHUP) else status for status in statuses]
    assert statuses[-1] == 0 and statuses.count(disturbed) >= len(statuses) - 2 >= 2, (statuses, log)
    assert set(statuses) <= {0, disturbed}, log
    whole, killed = results / f"{name}.whole", results / f"{name}.killed"
    assert (killed / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert (killed / STEPS).read_bytes() == (whole / STEPS).read_bytes()
    assert (killed / "gallery.json").read_bytes() == (whole / "gallery.json").read_bytes()
    result = f"adapter/{WEIGHTS}" if (whole / "adapter").exists() else "model/model.safetensors"
    assert (killed / result).read_bytes() == (whole / result).read_bytes()
    assert not list(killed.rglob(".*"))  # nothing half-written stays behind
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(results):
    log = (results / "interrupted.killed.stderr").read_text()
    assert "the same command goes on from there" in log and "Traceback" not in log
    assert "continuing" in (results / "interrupted.killed.stdout").read_text()


# ---- in one process ------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(tmp_path):
    case = scenario("again")
    first = start(case, tmp_path)
    first.swap()
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = start(case, tmp_path)
    assert again.swap() == first.observer.metrics
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])


def run(case, folder, capsys, **settings):
    """(exit code, stderr) of a scenario run as a command."""
    case = {**case, "settings": {**case["settings"], **settings}}
    code = cli.main(lambda argv: start(case, folder).swap() and None, [])
    return code, "".join(line for line in capsys.readouterr().err.splitlines(True) if not line.startswith("phase "))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0.5}, "train.lr 0.001, this command has 0.5"),
        ({"lora_rank": 3}, "lora.lora_rank 2, this command has 3"),
        ({"bound": 3.0}, "method.bound 10.0, this command has 3.0"),
        ({"seed": 4}, "train.seed 0, this command has 4"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(settings, says, tmp_path, capsys):
    case = scenario("other", lr=1e-3)
    assert run(case, tmp_path, capsys)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, err = run(case, tmp_path, capsys, **settings)
    assert code == 2 and err.count("\n") == 1 and says in err and "--overwrite" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_of_another_plan_is_refused(tmp_path, capsys):
    assert run(scenario("p"), tmp_path, capsys)[0] == 0
    code, err = run(scenario("p", order="fftl"), tmp_path, capsys)
    assert code == 2 and "plan.name 'fltf', this command has 'fftl'" in err


def test_a_run_on_another_base_model_is_another_run(tmp_path, monkeypatch, capsys):
    case = scenario("base")
    assert run(case, tmp_path, capsys)[0] == 0
    kind = start(case, tmp_path).domain
    make = type(kind).make_model

    def other(self):
        model = make(self)
        with torch.no_grad():
            model.patch_embed.weight.mul_(1.5)
        return model

    monkeypatch.setattr(type(kind), "make_model", other)
    code, err = run(case, tmp_path, capsys)
    assert code == 2 and "holds a run with base" in err


def test_overwrite_starts_anew(tmp_path, capsys):
    case = scenario("anew")
    assert run(case, tmp_path, capsys)[0] == 0
    assert run(case, tmp_path, capsys, lr=0.5, overwrite=True)[0] == 0
    assert read_lines(tmp_path / STEPS)[4]["lr"] > 1e-2


def test_settings_that_change_no_number_may_change(tmp_path, capsys):
    case = scenario("same")
    assert run(case, tmp_path, capsys)[0] == 0
    assert run(case, tmp_path, capsys, gallery=0, save_every=1.0)[0] == 0


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_state_is_one_line(keep, tmp_path, capsys):
    assert run(scenario("cut"), tmp_path, capsys)[0] == 0
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:keep])
    code, err = run(scenario("cut"), tmp_path, capsys)
    assert code == 2 and err.count("\n") == 1 and "state.pt is damaged" in err and "--overwrite" in err


def test_lost_lines_of_metrics_are_an_error_and_extra_ones_are_cut(tmp_path, capsys):
    case = scenario("lines")
    assert run(case, tmp_path, capsys)[0] == 0
    path = tmp_path / METRICS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"phase": 9, "act')  # a kill in the middle of a line
    assert run(case, tmp_path, capsys)[0] == 0 and path.read_bytes() == whole
    path.write_bytes(whole[:-20])
    code, err = run(case, tmp_path, capsys)
    assert code == 2 and err.count("\n") == 1 and "metrics.jsonl is damaged" in err


def test_a_damaged_config_is_one_line(tmp_path, capsys):
    assert run(scenario("config"), tmp_path, capsys)[0] == 0
    (tmp_path / "config.json").write_text("{")
    code, err = run(scenario("config"), tmp_path, capsys)
    assert code == 2 and "config.json is damaged" in err
