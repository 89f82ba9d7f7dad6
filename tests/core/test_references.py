"""The reference runs of continual unlearning, and the distances to them."""

from __future__ import annotations

import json

import pytest
import torch
from blobs import pretrained, trainer

from common.errors import UserError
from common.evaluation.run_measures import history_of
from common.plan import Plan
from common.plan_builders import continual_unlearning
from common.record import read_lines
from common.references import AGAIN, compare, reference_plans, unlearns_nothing

NAMES = [f"c{i}" for i in range(6)]
PLAN = continual_unlearning(NAMES, "unlearn", known=2, per_task=1, tasks=3, requests={2: [2], 3: [1]})


def carried_out(domain, plan, method, folder, **settings):
    """What is seen of a finished run."""
    run = trainer(domain, plan, method, folder, **settings)
    run.swap()
    return run.observer


def test_the_references_leave_out_what_is_unlearned_or_the_unlearning():
    plans = reference_plans(PLAN)
    assert plans["retrain"].steps == (("learn", ("task3",)),)
    assert plans["retrain"].missing == ("task1", "task2") or set(plans["retrain"].missing) == {"task1", "task2"}
    assert not any(set(p.keep) & {"c2", "c3"} for p in plans["retrain"].phases)
    assert [a for a, _ in plans["original"].steps] == ["learn"] * 3
    assert plans["original"].groups == plans["retrain"].groups == PLAN.groups


def test_a_group_learned_again_in_the_end_is_not_left_out():
    steps = (("learn", ("a",)), ("forget", ("a",)), ("learn", ("a",)), ("learn", ("b",)), ("forget", ("b",)))
    plan = Plan("x", {"a": ("1",), "b": ("2",)}, steps)
    assert reference_plans(plan)["retrain"].missing == ("b",)


@pytest.mark.parametrize("steps", [(("learn", ("a",)),), (("learn", ("a",)), ("forget", ("b",)))])
def test_plans_without_unlearning_have_no_references(steps):
    with pytest.raises(UserError, match="--with-references"):
        reference_plans(Plan("x", {"a": ("1",), "b": ("2",)}, steps))


def test_an_exact_unlearner_has_distance_zero_and_its_gap_is_measured(tmp_path):
    """learn 1, learn 2, unlearn 2: the amnesiac is then, bit for bit, the model that learned 1 alone."""
    plan = continual_unlearning(NAMES, "unlearn", known=2, per_task=1, tasks=2, requests={2: [2]})
    domain = pretrained(2)
    main = trainer(domain, plan, "amnesiac", tmp_path)
    main.swap()
    plain = {"disable_unlearning": unlearns_nothing(main.settings).method_config.disable_unlearning}
    assert plain["disable_unlearning"] and not main.method.config.disable_unlearning
    found = compare(main.observer, lambda plan, name: carried_out(domain, plan, "amnesiac", tmp_path / name, **plain))
    assert found["distance"]["unlearned"] == pytest.approx(0, abs=1e-9)
    assert found["distance"]["remaining"] == pytest.approx(0, abs=1e-9)
    original = history_of(read_lines(tmp_path / "reference-original" / "metrics.jsonl"))[-1]
    scores = history_of(main.observer.metrics)[-1]
    assert found["gap"]["known"] == pytest.approx(scores["known"] - original["known"])
    assert json.loads((tmp_path / "references.json").read_text()) == found


def test_a_method_that_does_not_unlearn_is_away_from_the_retrained_model(tmp_path):
    plan = continual_unlearning(NAMES, "unlearn", known=2, per_task=1, tasks=2, requests={2: [2]})
    domain = pretrained(2)
    main = trainer(domain, plan, "gradient_ascent", tmp_path)
    main.swap()
    found = compare(
        main.observer,
        lambda plan, name: carried_out(domain, plan, "gradient_ascent", tmp_path / name, seed=int(name == AGAIN)),
    )
    assert 0 < found["floor"]["remaining"] < found["distance"]["unlearned"]
    assert found["distance"]["unlearned"] > 0.01 and torch.isfinite(torch.tensor(found["distance"]["remaining"]))


def test_the_second_model_that_never_learned_has_another_seed(tmp_path):
    settings = trainer(pretrained(2), PLAN, "amnesiac", tmp_path, seed=3).settings
    seeds = {place: unlearns_nothing(settings, place).train.seed for place in ("reference-retrain", AGAIN)}
    assert seeds == {"reference-retrain": 3, AGAIN: 4} and settings.train.seed == 3
    assert unlearns_nothing(settings, AGAIN).method_config.disable_unlearning


def test_measures_are_written_with_the_records(tmp_path):
    t = trainer(pretrained(2), PLAN, "amnesiac", tmp_path)
    t.swap()
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "measures" in line]
    assert [line["phase"] for line in lines] == [1, 2, 3, 4, 5]
    assert {"forget", "retain", "h_mean"} <= set(lines[2]["measures"])
    assert {"last", "average", "forgetting", "backward_transfer"} <= set(lines[1]["measures"])
