"""--until settled: a phase ends by itself, and trains on nothing that it is judged by."""

from __future__ import annotations

import pytest
import torch
from blobs import REST, pretrained, trainer

from common.errors import UserError
from common.plan import make_plan
from common.record import METRICS, STEPS, read_lines
from common.report.runs import read_run, summary
from common.settling import settled
from common.streams import Chosen, Stream
from common.train_config import TrainConfig

PLAN = make_plan("fltf", ["c4"], ["c0"], REST)


def ended(folder):
    return [line["ended"] for line in read_lines(folder / METRICS) if "ended" in line]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([{"keep": 1.0, "target": 9.0, "share": 0.0}], False),  # one look shows no change
        ([{"keep": 1.0, "target": 9.0, "share": 0.5}, {"keep": 1.01, "target": 5.0, "share": 0.01}], True),
        ([{"keep": 1.0, "target": 9.0, "share": 0.0}, {"keep": 1.01, "target": 9.0, "share": 0.02}], False),
        ([{"keep": 1.0, "target": 9.0, "share": 0.0}, {"keep": 0.9, "target": 9.0, "share": 0.0}], False),
        ([{"keep": 1.0, "target": 1.0}, {"keep": 1.0, "target": 0.5}], False),  # a learn phase still learns
        ([{"keep": 1.0, "target": 0.5}, {"keep": 1.0, "target": 0.49}], True),
        ([{"target": 9.0, "share": 0.0}, {"target": 5.0, "share": 0.0}], True),  # nothing is kept
    ],
)
def test_a_phase_has_settled_when_it_forgot_and_what_is_kept_stands_still(looks, expected):
    assert settled(looks, TrainConfig(until="settled")) is expected


def test_no_step_draws_what_is_held_out(tmp_path):
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, until="settled")
    for phase in PLAN.phases:
        for role, classes in (("target", phase.target), ("keep", phase.keep)):
            size, held = t.domain.size(classes, train=True), t.settling.held(phase, role)
            assert len(held) == min(64, max(1, size // 10)) == len(set(held))
            stream = t.settling.stream(phase, role, Stream(0, 8))
            batches = stream.batches(size)
            drawn = {draw.index for _ in range(2 * size // 8) for draw in next(batches)}
            assert drawn == set(range(size)) - set(held)
    small = Chosen(0, 8, items=(3, 4, 5))  # a method's own memory
    left = t.settling.stream(PLAN.phases[0], "keep", small)
    assert set(left.items) == {3, 4, 5} - set(t.settling.held(PLAN.phases[0], "keep"))
    assert t.settling.stream(PLAN.phases[1], "gone", small) is small


def test_a_run_ends_its_phases_before_the_limit_and_says_so(tmp_path):
    settings = {"until": "settled", "steps": 400, "settled_window": 10, "batch_size": 32, "lora_rank": 4}
    t = trainer(pretrained(4), PLAN, "mask_replay", tmp_path, **settings)
    t.swap()
    steps = [line["phase"] for line in read_lines(tmp_path / STEPS)]
    told = ended(tmp_path)
    assert [line["steps"] for line in told] == [steps.count(1), steps.count(2)]
    assert all(line["settled"] and line["limit"] == 400 and line["steps"] < 400 for line in told)
    assert told[1]["share"] <= 0.01 and "share" not in told[0]
    last = {line["group"]: line for line in t.observer.metrics if "score" in line}
    assert last["forget"]["score"] == 0 and last["forget"]["step"] == told[1]["steps"]


def test_by_default_phases_without_a_stated_length_may_settle(tmp_path, capsys):
    t = trainer(pretrained(4), PLAN, "mask_replay", tmp_path / "a", epochs=None, settled_window=5)
    t.swap()
    told, printed = ended(tmp_path / "a"), capsys.readouterr().out
    assert [line["limit"] for line in told] == [max(300, 5 * t._length(phase)[0]) for phase in PLAN.phases]
    assert all(f"of at most {line['limit']} steps" in printed for line in told if line["settled"])
    assert any(line["settled"] for line in told) and summary(read_run(tmp_path / "a"))["ended"] == told
    for method in ("retrain", "scrub"):  # their schedules are set when a phase begins
        assert not trainer(pretrained(4), PLAN, method, tmp_path / method, epochs=None).settling.on(PLAN.phases[0])
    half = trainer(pretrained(4), PLAN, "replay", tmp_path / "b", epochs=None, forget_steps=4)
    assert half.settling.on(PLAN.phases[0]) and not half.settling.on(PLAN.phases[1])


def test_a_settled_phase_slows_down_over_one_window_at_least(tmp_path):
    settings = {"until": "settled", "steps": 40, "settled_window": 4, "settled_share": 1.0, "settled_change": 9.0}
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, schedule="constant", warmup=0.0, lr=1e-3, **settings)
    t.swap()
    rates = [line["lr"] for line in read_lines(tmp_path / STEPS) if line["phase"] == 1]
    assert rates == pytest.approx([1e-3] * 8 + [8e-4, 6e-4, 4e-4, 2e-4])
    assert [line["steps"] for line in ended(tmp_path)] == [12, 12]


def test_unasked_nothing_is_held_out_of_a_few_items(tmp_path, monkeypatch):
    domain, phase = pretrained(4), PLAN.phases[0]
    monkeypatch.setattr(domain, "size", lambda classes, *, train: 9 * len(classes))
    t = trainer(domain, PLAN, "replay", tmp_path, epochs=None)
    stream = Stream(0, 8)
    assert t.settling.stream(phase, "target", stream) is stream
    assert t.settling.held(phase, "target") == tuple(range(9))


def test_a_phase_that_does_not_settle_takes_all_its_steps_and_says_that(tmp_path):
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, until="settled", steps=6, settled_window=2, settled_change=0.0)
    t.swap()
    assert [(line["settled"], line["steps"]) for line in ended(tmp_path)] == [(False, 6), (False, 6)]


def test_looking_changes_nothing(tmp_path):
    """Without an early end a run is that of the same items without looks."""
    weights = []
    for window in (2, 100):
        settings = {"until": "settled", "steps": 6, "settled_window": window, "settled_change": 0.0}
        t = trainer(pretrained(4), PLAN, "replay", tmp_path / str(window), **settings)
        t.swap()
        weights.append(torch.cat([p.flatten() for p in t.model.parameters()]))
    assert torch.equal(*weights)


def test_a_run_without_it_is_the_run_it_was_before_there_was_such_a_flag(tmp_path):
    plain = trainer(pretrained(4), PLAN, "replay", tmp_path / "a", steps=2)
    assert not {name for name in plain._identity()["train"] if name.startswith(("until", "settled"))}
    plain.swap()
    assert not ended(tmp_path / "a")
    assert "until" in trainer(pretrained(4), PLAN, "replay", tmp_path / "b", until="settled")._identity()["train"]


def test_one_item_cannot_be_trained_on_and_held_out(tmp_path, monkeypatch):
    domain = pretrained(4)
    monkeypatch.setattr(domain, "size", lambda classes, *, train: len(classes))
    with pytest.raises(UserError, match="--until settled.*has one only; use --until steps"):
        trainer(domain, PLAN, "replay", tmp_path, until="settled")
    with pytest.raises(UserError, match="--until settled.*retrain.*use --until steps"):
        trainer(domain, PLAN, "retrain", tmp_path, until="settled")
