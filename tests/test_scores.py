import pytest

from common.errors import UserError
from common.evaluation.scores import drop, forget_h_mean, h_mean


@pytest.mark.parametrize(
    ("pretrained", "retain", "forget", "published"),
    [  # published rows: accuracy before, retained and forgotten after, printed H
        (70.88, 66.96, 3.58, 67.13),
        (72.74, 71.35, 0.00, 72.04),
        (73.86, 71.86, 0.00, 72.85),
        (74.65, 64.46, 54.60, 30.59),
        (75.11, 75.36, 0.00, 75.23),
    ],
)
def test_published_rows_are_reproduced(pretrained, retain, forget, published):
    assert h_mean(retain, drop(pretrained, forget)) == pytest.approx(published, abs=0.011)


def test_mean_lies_between_its_parts_and_is_symmetric():
    assert h_mean(40, 60) == h_mean(60, 40) == pytest.approx(48)
    assert h_mean(50, 50) == 50


@pytest.mark.parametrize(("retain", "fell"), [(0, 0), (0, 50), (50, 0), (50, -20), (0, -20), (-1, 50)])
def test_nothing_forgotten_or_nothing_left_is_zero(retain, fell):
    assert h_mean(retain, fell) == 0


def test_both_definitions_of_before():
    history = [
        {"a": 80.0, "b": 70.0, "retain": 75.0},
        {"a": 0.0, "b": 60.0, "retain": 70.0},
        {"b": 10.0, "retain": 65.0},
    ]
    assert forget_h_mean(history, 2, "b") == h_mean(65, 60)
    assert forget_h_mean(history, 2, "b", before="phase_start") == h_mean(65, 50)
    assert forget_h_mean(history, 1, "a") == forget_h_mean(history, 1, "a", before="phase_start") == h_mean(70, 80)


def test_unknown_words_are_named():
    history = [{"a": 1.0, "retain": 1.0}] * 2
    with pytest.raises(UserError, match="pretrained, phase_start"):
        forget_h_mean(history, 1, "a", before="task")
    with pytest.raises(UserError, match="between 1 and 1"):
        forget_h_mean(history, 2, "a")
    with pytest.raises(UserError, match="'c' has no score; there are: a, retain"):
        forget_h_mean(history, 1, "c")
