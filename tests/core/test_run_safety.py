"""What a run refuses to save, to write over or to believe, and what it writes again."""

import os
import shutil

import pytest
import torch
from ks_classification.session import SESSION
from toy import DOMAINS, make_trainer, swap_plan

from common import adapters, before, result
from common.bounded import Bounded
from common.errors import UserError
from common.files import fingerprint
from common.plan import Plan
from common.record import write_bytes
from common.session import Session
from common.settings import settings_from


def trainer(folder, method="gs_lora", **settings):
    torch.manual_seed(0)
    kind = DOMAINS["classification"]
    return make_trainer(kind(kind().make_model()), swap_plan(), method, folder, **{"steps": 1, **settings})


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    broken = trainer(tmp_path, lr=1000.0)
    broken.method.end_phase = lambda phase: next(iter(broken.parameters)).data.fill_(float("nan"))
    with pytest.raises(UserError, match="phase 1 learn ended with weights that are not finite"):
        broken.swap()
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda path: (path / adapters.WEIGHTS).write_bytes(b"half")])
@pytest.mark.parametrize("method, place", [("gs_lora", "adapter"), ("finetune", "model")])
def test_the_same_command_writes_a_lost_result_again(tmp_path, harm, method, place):
    def run():
        trainer(tmp_path, method).swap()
        return {path.name: path.read_bytes() for path in sorted((tmp_path / place).iterdir())}

    whole = run()
    if place == "model" and harm is not shutil.rmtree:
        (tmp_path / place / "model.safetensors").write_bytes(b"half")
    else:
        harm(tmp_path / place)
    assert run() == whole


def test_a_result_copied_from_another_seed_is_refused_and_written_again(tmp_path):
    mine, other = (tmp_path / name for name in ("mine", "other"))
    for seed, folder in enumerate((mine, other)):
        trainer(folder, seed=seed).swap()
    own = (mine / "adapter" / adapters.WEIGHTS).read_bytes()
    shutil.copytree(other / "adapter", mine / "adapter", dirs_exist_ok=True)
    session = Session()
    session.name = "toy-classification"
    with pytest.raises(UserError, match="is of another run"):
        session.load(mine, {})
    trainer(mine).swap()
    assert (mine / "adapter" / adapters.WEIGHTS).read_bytes() == own
    with pytest.raises(NotImplementedError):  # past the check; this session has no models
        session.load(mine, {})


def test_a_finished_run_without_its_state_is_not_trained_again_unasked(tmp_path):
    trainer(tmp_path).swap()
    (tmp_path / "state.pt").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        trainer(tmp_path).swap()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".x", "a b", "a..b"])
def test_a_plan_name_is_no_path(name):
    plan = Plan(name, {"a": ("x",), "b": ("y",)}, (("forget", ("a",)),))
    with pytest.raises(UserError, match="becomes the name of a folder"):
        settings_from((), {}).folder("classification", plan)
    assert str(settings_from((), {"output_dir": "here"}).folder("classification", plan)) == "here"


@pytest.mark.parametrize("name", ["", " ", "x\n", "x" * 300])
def test_a_name_is_one_line(name):
    for plan, group, label in ((name, "a", "x"), ("p", name, "x"), ("p", "a", name)):
        with pytest.raises(UserError, match="one line of 1 to 200"):
            Plan(plan, {group: (label,), "b": ("y",)}, (("forget", (group,)),))


@pytest.mark.parametrize("values", ["1", "1,x", "1,inf", "1,-2"])
def test_a_list_of_one_number_per_phase_is_checked_before_anything_is_read(values):
    settings = settings_from((), {"forget_weights": values})
    with pytest.raises(UserError, match="one number per phase"):
        settings.check_lists(swap_plan())
    settings_from((), {"forget_weights": "1,2"}).check_lists(swap_plan())


def test_files_have_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_other_files_under_the_same_names_are_told_apart(tmp_path):
    paths = [tmp_path / str(i) for i in range(200)]
    for path in paths:
        path.write_bytes(bytes(9000))
    first = fingerprint(paths)
    assert fingerprint(paths) == first and fingerprint([]) is None and fingerprint(paths, "boxes") != first
    paths[3].write_bytes(bytes(9001))  # any size
    assert fingerprint(paths) != first
    paths[3].write_bytes(bytes(9000))
    paths[0].write_bytes(bytes(8999) + b"x")  # the end of one that is looked at
    assert fingerprint(paths) != first


@pytest.mark.parametrize(
    "values", [{"lr": float("inf")}, {"lr": 1e300}, {"seed": -1}, {"seed": 10**20}, {"batch_size": 10**6},
               {"threads": 10**6}, {"keep_weight": -5.0}],
)  # fmt: skip
def test_settings_beyond_their_limits_are_refused(values):
    with pytest.raises(UserError, match="must"):
        settings_from((), values)


def test_a_batch_of_more_than_there_is_stops_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="`--batch-size 5000` is more than the"):
        trainer(tmp_path, batch_size=5000).swap()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method, place", [("gs_lora", "adapter"), ("finetune", "model")])
def test_scores_of_the_base_are_the_same_when_they_are_taken_later(tmp_path, monkeypatch, method, place):
    def run(folder):
        trainer(folder, method, steps=3).swap()
        weights = {path.name: path.read_bytes() for path in sorted((folder / place).glob("*.safetensors"))}
        return sorted((folder / "metrics.jsonl").read_text().splitlines()), weights

    at_once = run(tmp_path / "at once")
    monkeypatch.setattr(before, "AT_ONCE", -1)
    assert run(tmp_path / "later") == at_once


def test_models_beyond_half_the_memory_are_not_begun(monkeypatch):
    with pytest.raises(UserError, match="half the memory"), Bounded("x"):
        torch.nn.Linear(10**7, 10**7)
    monkeypatch.setattr("common.bounded.MOST", 5)
    with pytest.raises(UserError, match="half the memory"), Bounded("x"):
        torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(9)])
    assert torch.nn.Linear(2, 2).weight.shape == (2, 2)


def test_lists_for_flags_from_python_are_lists_of_names():
    assert result._flags(SESSION, {"class_names": ["a", "b, c"], "img_size": 3}) == {
        "class_names": 'a,"b, c"',
        "img_size": 3,
    }
    with pytest.raises(UserError, match="did you mean checkpoint"):
        result._flags(SESSION, {"chekpoint": "x"})
