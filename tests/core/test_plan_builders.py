"""Published plans: the seeded class orders, the spans of every task, requests, and the measures of a run."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.evaluation.run_measures import forget_measures, history_of, learn_measures, measures, weights_of
from common.plan import Plan, from_record
from common.plan_builders import build, class_incremental, continual_forgetting, continual_unlearning, shuffled
from common.plan_file import read_plan

ROOT = Path(__file__).parents[2]
PLANS = sorted(ROOT.glob("*/configs/plans/*.yaml"))
NAMES = [f"{i:03d}" for i in range(100)]

# class orders as the published repositories print them
GS_LORA = (
    "83,17,10,9,89,52,7,32,37,77,61,34,78,55,56,63,69,22,75,66,35,72,71,23,86,38,24,5,29,30,16,11,82,19,57,14,91,27,98,"
    "53,0,20,59,28,47,18,6,48,12,62,1,43,3,60,41,85,4,95,97,36,94,65,67,99,25,33,70,40,92,31,58,15,45,2,87,76,80,44,64,"
    "8,51,54,13,88,84,26,50,39,96,81,49,42,21,93,74,73,46,90,68,79"
)
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
COCO = (
    "74,64,65,5,79,59,36,88,9,49,10,42,86,34,82,90,72,89,50,25,2,27,75,51,67,22,16,85,18,31,21,80,7,73,57,17,81,20,15,"
    "24,11,56,13,1,6,48,4,46,14,60,39,32,35,23,38,43,58,33,40,47,8,54,70,62,87,44,3,77,61,55,78,41,28,52,37,84,53,63,19,76"
)


def numbers(text):
    return [int(i) for i in text.split(",")]


def test_the_class_order_of_gs_lora_is_reproduced():
    assert shuffled(range(100), 1337) == numbers(GS_LORA)


def test_the_class_order_of_the_coco_experiments_is_reproduced():
    assert shuffled(COCO_IDS, 123, "numpy") == numbers(COCO)


def test_an_order_is_a_permutation_and_its_kind_is_checked():
    for kind in ("python", "numpy", "permutation", "none"):
        assert sorted(shuffled(NAMES, 5, kind)) == NAMES
    with pytest.raises(UserError, match="generator"):
        shuffled(NAMES, 5, "dice")


def test_four_times_twenty_forgets_from_the_end_of_the_order():
    order = shuffled(range(100), 1337)
    plan = continual_forgetting([str(c) for c in order], "x", first=80, per_task=20, tasks=4)
    spans = [order[80:100], order[60:80], order[40:60], order[20:40]]
    for phase, span, end in zip(plan.phases, spans, (80, 60, 40, 20), strict=True):
        assert phase.target == tuple(map(str, span))
        assert sorted(phase.keep) == sorted(map(str, order[:end]))


def test_missing_classes_are_retained_but_never_shown():
    order = [str(c) for c in shuffled(range(100), 1337)]
    plan = continual_forgetting(order, "x", first=80, per_task=20, tasks=4, missing=5)
    assert plan.groups["missing"] == ("83", "17", "10", "9", "89")
    assert all(not set(phase.keep) & set(plan.groups["missing"]) for phase in plan.phases)
    single = continual_forgetting(order, "x", first=70, per_task=30, missing=40, missing_at="last")
    assert single.groups["missing"] == tuple(order[30:70])
    assert from_record(plan.record()) == plan


@pytest.mark.parametrize("settings", [
    {"first": 81, "per_task": 20}, {"first": 80, "per_task": 20, "tasks": 5}, {"first": 0, "per_task": 20},
    {"first": 80, "per_task": 0}, {"first": 20, "per_task": 10, "missing": 20},
])  # fmt: skip
def test_spans_that_do_not_fit_are_refused(settings):
    """The published script slices with negative indices then, and trains on the wrong classes."""
    with pytest.raises(UserError):
        continual_forgetting(NAMES, "x", **settings)


def test_a_missing_group_must_not_be_trained():
    with pytest.raises(UserError, match="missing group"):
        Plan("x", {"a": ("1",), "b": ("2",)}, (("forget", ("a",)),), missing=("a",))


def test_class_incremental_spans():
    plan = class_incremental(NAMES, "x", first=50, increment=20)
    assert [len(c) for c in plan.groups.values()] == [50, 20, 20, 10]
    assert [p.action for p in plan.phases] == ["learn"] * 3
    assert [len(p.keep) for p in plan.phases] == [50, 70, 90]
    whole = class_incremental(NAMES, "x", first=50, increment=20, tasks=2, pretrained=False)
    assert [len(p.target) for p in whole.phases] == [50, 20] and whole.phases[0].keep == ()


def test_requests_come_after_their_task():
    plan = continual_unlearning(NAMES, "x", per_task=2, tasks=5, requests={2: [1], 4: [2], 5: [5]})
    assert [f"{a} {'+'.join(g)}" for a, g in plan.steps] == [
        "learn task1", "learn task2", "forget task1", "learn task3", "learn task4", "forget task2", "learn task5",
        "forget task5",
    ]  # fmt: skip
    assert set(plan.phases[-1].keep) == {*plan.groups["task3"], *plan.groups["task4"]}


def test_a_class_can_be_requested_alone():
    plan = continual_unlearning(["a", "b", "c", "d", "e"], "x", known=1, per_task=2, tasks=2, requests={2: ["c", 2]})
    assert plan.groups == {"known": ("a",), "task1": ("b",), "task1-c": ("c",), "task2": ("d", "e")}
    assert plan.phases[0].target == ("b", "c")
    assert [p.target for p in plan.phases[2:]] == [("c",), ("d", "e")]
    assert plan.phases[-1].keep == ("a", "b")


@pytest.mark.parametrize("requests", [{1: [2]}, {2: [1, 1]}, {9: [1]}, {2: ["zzz"]}, {"x": [1]}])
def test_requests_that_mean_nothing_are_refused(requests):
    with pytest.raises(UserError):
        continual_unlearning(NAMES, "x", per_task=2, tasks=2, requests=requests)


def test_an_order_does_not_depend_on_which_classes_a_model_knows():
    data = {"build": "class_incremental", "first": 4, "increment": 2, "generator": "permutation", "seed": 1993}
    assert build(data, list("abcdefgh")).groups == build(data, list("hgfedcba")).groups
    with pytest.raises(UserError, match="takes"):
        build({**data, "frist": 4}, list("abcdefgh"))
    with pytest.raises(UserError, match="must be one of"):
        build({**data, "build": "nothing"}, list("abcdefgh"))
    with pytest.raises(UserError, match="unknown class"):
        build({**data, "classes": ["z"]}, list("abcdefgh"))


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_every_published_plan_is_a_plan(path):
    names = [str(i) for i in COCO_IDS] if "coco" in path.stem else NAMES
    names = list("0123456789") if "digits" in path.stem else names
    plan = read_plan(path, names)
    assert plan.name == path.stem and plan.phases
    assert all(not set(p.target) & set(p.keep) for p in plan.phases)
    assert from_record(plan.record()) == plan


# ---- measures --------------------------------------------------------------------------------------------


def test_measures_of_continual_forgetting():
    groups = {"retain": ("a", "b"), "f1": ("c", "d"), "f2": ("e", "f")}
    plan = Plan("x", groups, (("forget", ("f1",)), ("forget", ("f2",))), True)
    history = [{"retain": 90, "f1": 80, "f2": 70}, {"retain": 88, "f1": 4, "f2": 60}, {"retain": 85, "f1": 6, "f2": 0}]
    first, second = forget_measures(plan, history, 1), forget_measures(plan, history, 2)
    assert first["forget"] == 4 and first["retain"] == (88 + 60) / 2 and first["drop"] == 76 and "old" not in first
    assert second["forget"] == 0 and second["retain"] == 85 and second["old"] == 6 and second["drop"] == 70
    assert second["h_mean"] == pytest.approx(2 * 85 * 70 / 155)
    assert second["h_mean_phase"] == pytest.approx(2 * 85 * 60 / 145)


def test_missing_classes_count_among_the_retained_ones_in_their_own_h_mean():
    groups = {"retain": ("a", "b", "c"), "missing": ("d",), "f": ("e",)}
    plan = Plan("x", groups, (("forget", ("f",)),), True, ("missing",))
    found = forget_measures(plan, [{"retain": 90, "missing": 80, "f": 70}, {"retain": 90, "missing": 50, "f": 0}], 1)
    assert found["retain"] == 90 and found["missing"] == 50 and found["retain_all"] == 80
    assert found["h_mean"] == pytest.approx(2 * 80 * 70 / 150)


def test_measures_of_class_incremental_learning_count_every_old_task():
    """A published formula leaves the most recent old task out and still divides by its number."""
    plan = class_incremental(list("abcdef"), "x", first=2, increment=2)
    history = [
        {"task1": 90, "task2": 0, "task3": 0}, {"task1": 80, "task2": 70, "task3": 0},
        {"task1": 60, "task2": 55, "task3": 50},
    ]  # fmt: skip
    assert learn_measures(plan, history, 0) == {}
    found = learn_measures(plan, history, 2)
    assert found["last"] == pytest.approx(55) and found["forgetting"] == pytest.approx((30 + 15) / 2)
    assert found["backward_transfer"] == -found["forgetting"]
    assert found["average"] == pytest.approx((90 + 75 + 55) / 3)


def test_unlearned_tasks_are_no_longer_old_tasks():
    plan = continual_unlearning(list("abcdef"), "x", per_task=2, tasks=3, requests={2: [1]})
    scores = [
        {"task1": a, "task2": b, "task3": c} for a, b, c in [(0, 0, 0), (9, 0, 0), (8, 7, 0), (0, 6, 0), (0, 5, 4)]
    ]
    found = learn_measures(plan, scores, 4)
    assert found["last"] == 4.5 and found["forgetting"] == 2
    assert measures(plan, scores, 3)["forget"] == 0


def test_the_history_is_read_off_the_records():
    lines = [
        {"phase": 0, "end": True, "group": "a", "score": 1.0}, {"phase": 1, "end": False, "group": "a", "score": 9.0},
        {"phase": 1, "end": True, "group": "a", "score": 2.0}, {"phase": 1, "adapter_norm": {}},
    ]  # fmt: skip
    assert history_of(lines) == [{"a": 1.0}, {"a": 2.0}]


def test_groups_are_pooled_by_test_items_where_the_score_is_a_share_of_items():
    """Ten images of a and ninety of b, one class each: 19 %, not 55 %, of them are right."""
    plan = Plan("x", {"a": ("1",), "b": ("2",), "r": ("3",)}, (("forget", ("a", "b")),))
    history = [{"a": 100.0, "b": 100.0, "r": 100.0}, {"a": 100.0, "b": 10.0, "r": 90.0}]
    lines = [{"group": g, "weight": n} for g, n in (("a", 10), ("b", 90), ("r", 50))]
    weights = weights_of(plan.groups, lines)
    assert measures(plan, history, 1, weights)["forget"] == 19 and measures(plan, history, 1)["forget"] == 55
    assert weights_of(plan.groups, []) == {"a": 1, "b": 1, "r": 1}
