"""Plans: the four orders, the keep rule, YAML plans, and what is refused."""

import pytest

from common.errors import UserError
from common.plan import ORDERS, Plan, from_record, make_plan
from common.plan_file import PlanConfig, plan_from, read_plan

LEARN, FORGET, RETAIN = ("l1", "l2"), ("f1",), ("r1", "r2")


@pytest.mark.parametrize(
    ("order", "phases"),
    [
        ("fltf", [("learn", LEARN, RETAIN), ("forget", FORGET, RETAIN + LEARN)]),
        ("fftl", [("forget", FORGET, RETAIN), ("learn", LEARN, RETAIN)]),
        ("lfl", [("learn", LEARN, RETAIN), ("forget", FORGET, RETAIN + LEARN), ("learn", LEARN, RETAIN)]),
        ("flf", [("forget", FORGET, RETAIN), ("learn", LEARN, RETAIN), ("forget", FORGET, RETAIN + LEARN)]),
        ("learn", [("learn", LEARN, FORGET + RETAIN)]),
        ("forget", [("forget", FORGET, RETAIN)]),
    ],
)
def test_keep_is_retained_plus_learned_minus_forgotten(order, phases):
    plan = make_plan(order, LEARN, FORGET, RETAIN, keep_until_forgotten=False)
    assert [(p.action, p.target, p.keep) for p in plan.phases] == phases
    assert [p.index for p in plan.phases] == list(range(1, len(phases) + 1))


def test_a_class_to_be_forgotten_is_kept_until_its_own_phase_unless_told_otherwise():
    assert make_plan("fltf", LEARN, FORGET, RETAIN).phases[0].keep == FORGET + RETAIN
    assert [p.keep for p in continual().phases] == [("b", "c"), ("c",)]
    assert [p.keep for p in continual(keep_until_forgotten=False).phases] == [("c",), ("c",)]


def test_a_phase_knows_what_is_gone_and_what_no_phase_has_learned_yet():
    found = {order: [(p.gone, p.unknown) for p in make_plan(order, LEARN, FORGET, RETAIN).phases] for order in ORDERS}
    assert found["fltf"] == [((), LEARN), ((), ())]
    assert found["fftl"] == [((), LEARN), (FORGET, LEARN)]
    assert found["lfl"] == [((), LEARN), ((), ()), (FORGET, ())]
    assert found["flf"] == [((), LEARN), (FORGET, LEARN), ((), ())]  # what a phase trains is not gone for it
    relearned = Plan("p", {"a": ("x",), "b": ("y",)}, (("forget", ("a",)), ("learn", ("a",)), ("forget", ("b",))))
    assert [p.gone for p in relearned.phases] == [(), (), ()]


@pytest.mark.parametrize("order", ORDERS)
def test_no_phase_trains_and_keeps_a_class_and_forgotten_ones_are_never_kept(order):
    forgotten: set[str] = set()
    for phase in make_plan(order, LEARN, FORGET, RETAIN).phases:
        assert not set(phase.target) & set(phase.keep)
        forgotten = forgotten | set(phase.target) if phase.action == "forget" else forgotten - set(phase.target)
        assert not forgotten & set(phase.keep)


def test_classes_learned_first_need_new_rows():
    assert make_plan("fltf", LEARN, FORGET, RETAIN).new_classes == LEARN
    assert make_plan("forget", (), FORGET, RETAIN).new_classes == ()
    relearned = Plan("p", {"a": ("x",), "b": ("y",)}, (("forget", ("a",)), ("learn", ("a",))))
    assert relearned.new_classes == ()


def continual(**settings):
    groups = {"f1": ("a",), "f2": ("b",), "r": ("c",)}
    return Plan("gs-lora", groups, (("forget", ("f1",)), ("forget", ("f2",))), **settings)


def test_class_incremental_learning_keeps_all_learned_so_far():
    steps = tuple(("learn", (name,)) for name in ("a", "b", "c"))
    plan = Plan("cil", {"a": ("1",), "b": ("2",), "c": ("3",)}, steps)
    assert [p.keep for p in plan.phases] == [(), ("1",), ("1", "2")]
    assert plan.new_classes == ("1", "2", "3")


def test_continual_unlearning_drops_what_is_unlearned_and_takes_back_what_is_relearned():
    steps = (("learn", ("a",)), ("learn", ("b",)), ("forget", ("a",)), ("learn", ("c",)), ("learn", ("a",)))
    plan = Plan("cu", {"a": ("1",), "b": ("2",), "c": ("3",)}, steps)
    assert [p.keep for p in plan.phases] == [(), ("1",), ("2",), ("2",), ("2", "3")]


def test_a_phase_may_train_several_groups():
    plan = Plan("p", {"a": ("1",), "b": ("2",), "r": ("3",)}, (("learn", ("a", "b")),))
    assert plan.phases[0].target == ("1", "2") and plan.phases[0].title == "1 learn a+b"


def test_a_recorded_plan_comes_back():
    plan = make_plan("lfl", LEARN, FORGET, RETAIN)
    assert from_record(plan.record()).phases == plan.phases


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_plan("xyz", LEARN, FORGET, RETAIN), "`--order` must be one of fltf, fftl, lfl, flf"),
        (lambda: make_plan("fltf", LEARN, LEARN[:1], RETAIN), "'l1' is in both `learn` and `forget`"),
        (lambda: make_plan("fltf", LEARN, (), RETAIN), "needs classes to forget; name them with --forget"),
        (lambda: Plan("p", {"a": ("1",)}, ()), "no phases"),
        (lambda: Plan("p", {"a": ()}, (("learn", ("a",)),)), "'a' of plan 'p' holds no class"),
        (lambda: Plan("p", {"a": ("1",)}, (("learn", ("b",)),)), "names group 'b'; it has: a"),
        (lambda: Plan("p", {"a": ("1",)}, (("learn", ("a", "a")),)), "each of its groups once"),
        (
            lambda: Plan("p", {"a": ("1",), "b": ("2",)}, (("learn", ("b",)), ("forget", ("a",)), ("learn", ("a",)))),
            None,
        ),
    ],
)
def test_impossible_plans_say_what_is_wrong(make, message):
    if message is None:
        make()
    else:
        with pytest.raises(UserError, match=message):
            make()


# ---- YAML ----------------------------------------------------------------------------------------------------

AVAILABLE = ["cat", "dog", "fox", "owl"]


def written(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_a_yaml_plan_with_names_indices_and_the_rest(tmp_path):
    path = written(
        tmp_path, "groups: {new: cat, old: [1], all: rest}\nphases: [learn: new, forget: [old]]\nname: mine\n"
    )
    plan = read_plan(path, AVAILABLE)
    assert plan.name == "mine" and plan.groups == {"new": ("cat",), "old": ("dog",), "all": ("fox", "owl")}
    assert plan.steps == (("learn", ("new",)), ("forget", ("old",)))


def test_a_yaml_plan_may_keep_until_forgotten(tmp_path):
    text = "groups: {a: cat, b: dog, r: rest}\nphases: [forget: a, forget: b]\n"
    path = written(tmp_path, text)
    assert read_plan(path, AVAILABLE).phases[0].keep == ("dog", "fox", "owl")
    assert plan_from(PlanConfig(plan=str(path), keep_until_forgotten=False), AVAILABLE, []).phases[0].keep == (
        "fox",
        "owl",
    )
    for said, kept in (("true", ("dog", "fox", "owl")), ("false", ("fox", "owl"))):
        assert read_plan(written(tmp_path, f"{text}keep_until_forgotten: {said}\n"), AVAILABLE).phases[0].keep == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: {a: cat}\n", "needs `groups` .* and `phases`"),
        ("groups: {a: cat}\nphases: [learn: a]\nepochs: 3\n", "unknown field `epochs`"),
        ("groups: {a: cat}\nphases: [erase: a]\n", "a phase is `learn: group` or `forget: group`"),
        ("groups: {a: cat}\nphases: [learn]\n", "a phase is"),
        ("groups: {a: [cat, cow]}\nphases: [learn: a]\n", "unknown class 'cow'; there are: cat, dog, fox, owl"),
        ("groups: {a: [cat, 0]}\nphases: [learn: a]\n", "'cat' is named twice"),
        ("groups: {a: cat, b: cat}\nphases: [learn: a]\n", "'cat' is in both `a` and `b`"),
        ("groups: {a: }\nphases: [learn: a]\n", "'a' of plan 'plan' holds no class"),
        ("groups: {a: [0,1,2,3], b: rest}\nphases: [learn: a]\n", "'b' of plan 'plan' holds no class"),
        ("groups: {a: 7}\nphases: [learn: a]\n", "unknown class '7'"),
        ("groups: {a: cat}\nphases: [learn: a]\nkeep_until_forgotten: 'no'\n", "true or false"),
        ("groups: {a: cat}\nphases: []\n", "no phases"),
        ("- a\n", "must hold `name: value` lines"),
        ("groups: [\n", "is not valid YAML"),
        ("groups: !!python/object/apply:os.system [echo hi]\n", "it cannot run code"),
        ("groups: {a: !!python/name:os.system }\nphases: [learn: a]\n", "it cannot run code"),
    ],
)
def test_bad_yaml_plans_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as found:
        read_plan(written(tmp_path, text), AVAILABLE)
    assert "\n" not in str(found.value)


def test_a_plan_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_plan(tmp_path / "none.yaml", AVAILABLE)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text in UTF-8"):
        read_plan(tmp_path / "binary.yaml", AVAILABLE)


# ---- flags ---------------------------------------------------------------------------------------------------


def test_flags_name_classes_and_the_rest_is_retained():
    plan = plan_from(PlanConfig("fftl", learn="owl", forget="0"), AVAILABLE[:3], ["owl"])
    assert plan.groups == {"learn": ("owl",), "forget": ("cat",), "retain": ("dog", "fox")}


def test_a_plan_file_wins_over_the_order(tmp_path):
    path = written(tmp_path, "groups: {a: owl, r: rest}\nphases: [learn: a]\n")
    assert plan_from(PlanConfig("xyz", plan=str(path)), AVAILABLE[:3], ["owl"]).steps == (("learn", ("a",)),)


@pytest.mark.parametrize("name", ["learn", "forget", "retain"])
def test_a_list_of_commas_names_no_class(name):
    with pytest.raises(UserError, match="names no class"):
        PlanConfig(**{"forget": "a", name: ",,,"}).chosen_order()
