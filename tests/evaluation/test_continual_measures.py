import pytest

from common.errors import UserError
from common.evaluation.continual import (
    accuracy_gap,
    average_accuracy,
    backward_transfer,
    forgetting,
    last_accuracy,
)

# row t: scores of tasks 0..t after task t
TABLE = [[90.0], [80.0, 85.0], [70.0, 60.0, 95.0]]


def test_forgetting_counts_all_old_tasks():
    """The published measure leaves out the last old task but divides by it: 10.0 here."""
    assert forgetting(TABLE) == (20 + 25) / 2
    assert forgetting(TABLE, after=1) == 10 and forgetting(TABLE, after=0) == 0


def test_forgetting_is_minus_the_backward_transfer():
    assert forgetting(TABLE) == -backward_transfer(TABLE)
    assert forgetting([[50.0]]) == backward_transfer([[50.0]]) == 0


def test_backward_transfer_counts_the_second_task_too():
    only_second = [[80.0], [80.0, 80.0], [80.0, 50.0, 80.0]]
    assert backward_transfer(only_second) == -15


def test_forgetting_from_the_best_moment_is_never_smaller():
    table = [[60.0], [90.0, 70.0], [50.0, 70.0, 80.0]]
    assert forgetting(table) == (10 + 0) / 2 and forgetting(table, best="ever") == (40 + 0) / 2
    assert forgetting(TABLE, best="ever") == forgetting(TABLE)


def test_last_and_average_accuracy():
    assert last_accuracy(TABLE) == 75
    assert average_accuracy(TABLE) == (90 + 82.5 + 75) / 3


def test_sizes_make_every_image_count_the_same():
    sizes = [100, 50, 50]
    assert last_accuracy(TABLE, sizes) == (100 * 70 + 50 * 60 + 50 * 95) / 200
    assert average_accuracy(TABLE, sizes) == pytest.approx((90 + (100 * 80 + 50 * 85) / 150 + 73.75) / 3)
    assert last_accuracy(TABLE, [5, 5, 5]) == last_accuracy(TABLE)


def test_entries_of_tasks_to_come_are_not_read():
    full = [[90.0, 1.0, 2.0], [80.0, 85.0, 3.0], TABLE[2]]
    for measure in (forgetting, backward_transfer, last_accuracy, average_accuracy):
        assert measure(full) == measure(TABLE)


def test_accuracy_gap_is_the_mean_difference():
    assert accuracy_gap([70, 80], [75, 79]) == -2
    with pytest.raises(UserError, match="2 scores"):
        accuracy_gap([70, 80], [75])


def test_damaged_tables_are_named():
    with pytest.raises(UserError, match="empty"):
        forgetting([])
    with pytest.raises(UserError, match="row 1"):
        forgetting([[1.0], [1.0]])
    with pytest.raises(UserError, match="'learned' or 'ever'"):
        forgetting(TABLE, best="max")
    with pytest.raises(UserError, match="`sizes`"):
        last_accuracy(TABLE, [1, 2])
