"""A base model that guesses is refused; one that names its classes, or is only unsure of them, is not."""

import pytest

from common.chance import known_classes, problem
from common.domain import Evaluation
from common.plan import make_plan
from common.record import NOTHING


def found(answers, score=50.0):
    return {name: Evaluation({"total": score}, answers={name: own}) for name, own in answers.items()}


def test_classes_to_be_learned_need_not_be_known():
    plan = make_plan("fltf", ["new"], ["a"], ["b", "c"])
    assert known_classes(plan, ["c", "a", "x"]) == ["a", "c"]


@pytest.mark.parametrize("answers", [
    {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"a": 1.0}},  # every name is that of the next row
    {name: {"a": 1.0} for name in "abc"},  # one answer for all
    {name: {"a": 0.3, "b": 0.35, "c": 0.35} for name in "abc"},
    {"a": {"b": 0.5, NOTHING: 0.5}, "b": {NOTHING: 1.0}},
])  # fmt: skip
def test_a_guesser_is_told(answers):
    assert "right name" in problem(found(answers))


@pytest.mark.parametrize("answers", [
    {name: {name: 1.0} for name in "abc"},
    {name: {name: 0.1, NOTHING: 0.9} for name in "ab"},  # finds little, names it rightly
    {"a": {"a": 0.5, "b": 0.3, "c": 0.2}, "b": {"b": 0.5, "a": 0.5}, "c": {"c": 0.4, "a": 0.6}},
    {"a": {"a": 0.4, "ground": 0.6}},  # a single class proves nothing
    {"a": {NOTHING: 1.0}, "b": {NOTHING: 1.0}},  # scores below what is shown, but a ranking that is right
    {},
])  # fmt: skip
def test_a_model_that_knows_something_goes_on(answers):
    assert problem(found(answers)) == ""


def test_a_model_that_names_nothing_must_score_something():
    assert "finds nearly nothing (score 0.2)" in problem(found({"a": {NOTHING: 1.0}, "b": {NOTHING: 1.0}}, 0.2))
    assert problem({"a": Evaluation({"total": 0.0})}) == ""  # a domain without answers is not judged
