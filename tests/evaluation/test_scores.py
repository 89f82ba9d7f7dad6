import pytest

from common.evaluation.scores import drop, h_mean


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
