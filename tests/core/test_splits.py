"""Class lists and shares of the training items."""

import pytest

from common.errors import UserError
from common.splits import groups_from_flags, read_list, resolve, shorten, subset, write_list

BASE, NEW = ["cat", "dog", "fox", "7"], ["owl", "yak"]
LABELS = [0] * 40 + [1] * 10 + [2] * 3


def test_lists_come_from_text_or_a_file(tmp_path):
    assert read_list(" a, b ,,c") == ["a", "b", "c"]
    (tmp_path / "list").write_text("a\n# no class\n\nb  # a class\n")
    assert read_list(f"@{tmp_path}/list") == ["a", "b"]
    with pytest.raises(UserError, match="cannot read"):
        read_list(f"@{tmp_path}/none")


def test_names_with_commas_and_quotes_survive_a_flag():
    assert read_list('"salt, pepper",c') == ["salt, pepper", "c"]
    names = ["a", "salt, pepper", '"quoted", twice', "@home", "5'7\" tall", "a#b"]
    assert read_list(write_list(names)) == names and write_list(["a", "b"]) == "a,b"


def test_names_win_over_indices():
    assert resolve("dog,0,7", BASE, "--forget") == ["dog", "cat", "7"]
    assert resolve([1, "fox"], BASE, "--forget") == ["dog", "fox"]


@pytest.mark.parametrize("entry", ["cow", "9", "-1", "²"])
def test_unknown_classes_are_refused_with_what_there_is(entry):
    with pytest.raises(UserError, match=f"--forget: unknown class '{entry}'; there are: cat, dog, fox, 7"):
        resolve(entry, BASE, "--forget")


def test_a_class_named_twice_is_refused():
    with pytest.raises(UserError, match="'cat' is named twice"):
        resolve("cat,0", BASE, "--forget")


def test_long_lists_are_shortened():
    assert shorten([str(i) for i in range(100)], 3) == "0, 1, 2, ... (100 in all)"


def test_flags_make_three_groups():
    groups = groups_from_flags("owl", "cat", "", BASE, NEW)
    assert groups == {"learn": ["owl"], "forget": ["cat"], "retain": ["dog", "fox", "7"]}
    assert groups_from_flags("owl", "cat", "fox", BASE, NEW)["retain"] == ["fox"]


@pytest.mark.parametrize(
    ("learn", "forget", "retain", "message"),
    [
        ("owl,cat", "cat", "", "'cat' is in both --learn and --forget"),
        ("owl", "yak", "", "the model does not know class 'yak'; it knows: cat"),
        ("cat", "dog", "", "the model knows class 'cat' already; new ones are: owl, yak"),
        ("owl", "cat,dog,fox,7", "", "no class is left to retain"),
        ("owl", "cat", "cow", "--retain: unknown class 'cow'"),
        ("cow", "cat", "", "--learn: unknown class 'cow'; there are: cat, dog, fox, 7, owl, yak"),
    ],
)
def test_impossible_flags_are_refused(learn, forget, retain, message):
    with pytest.raises(UserError, match=message):
        groups_from_flags(learn, forget, retain, BASE, NEW)


def count(indices):
    return [sum(LABELS[i] == label for i in indices) for label in range(3)]


def test_a_fraction_is_stratified_and_leaves_no_class_out():
    assert count(subset(LABELS, 0, 0.1)) == [4, 1, 1]
    assert count(subset(LABELS, 0, 0.5)) == [20, 5, 2]
    assert subset(LABELS, 0, 1.0) == list(range(len(LABELS)))


def test_shots_are_a_number_per_class():
    assert count(subset(LABELS, 0, shots=3)) == [3, 3, 3]
    with pytest.raises(UserError, match="4 shots were asked for, but class 2 has 3"):
        subset(LABELS, 0, shots=4)


def test_the_seed_alone_decides():
    assert subset(LABELS, 1, 0.3) == subset(LABELS, 1, 0.3)
    assert subset(LABELS, 1, 0.3) != subset(LABELS, 2, 0.3)
    assert len(set(subset(LABELS, 1, 0.3))) == len(subset(LABELS, 1, 0.3))


def test_a_published_share_is_drawn_over_all_items():
    chosen = subset(LABELS, 0, 0.1, stratified=False)
    assert len(chosen) == int(0.1 * len(LABELS)) and chosen == sorted(chosen)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        subset(LABELS, 0, fraction)


def test_shots_are_not_negative():
    with pytest.raises(UserError, match="--shots"):
        subset(LABELS, 0, shots=-1)
