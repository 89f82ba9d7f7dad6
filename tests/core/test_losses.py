"""Bounded forgetting and softened divergence."""

import pytest
import torch
import torch.nn.functional as F

from common.domain import Prediction
from common.losses import bounded_forgetting, soft_kl


def prediction(losses, split=True):
    losses = torch.tensor(losses, requires_grad=True)
    nothing = torch.zeros(len(losses), 1)
    return Prediction(losses.mean(), nothing, nothing, nothing[:, 0].long(), losses if split else None), losses


def test_per_item_no_item_pays_for_another():
    p, losses = prediction([0.0, 20.0])
    value = bounded_forgetting(p, 10.0)
    value.backward()
    assert value == 5.0 and losses.grad.tolist() == [-0.5, 0.0]


def test_on_the_mean_one_item_pays_for_all():
    p, losses = prediction([0.0, 20.0])
    value = bounded_forgetting(p, 10.0, per_item=False)
    value.backward()
    assert value == 0.0 and losses.grad.tolist() == [0.0, 0.0]


def test_both_agree_while_every_item_is_below_the_bound():
    p, _ = prediction([1.0, 3.0, 2.0])
    torch.testing.assert_close(bounded_forgetting(p, 10.0), bounded_forgetting(p, 10.0, per_item=False))


def test_losses_that_do_not_split_are_bounded_on_their_mean():
    p, _ = prediction([0.0, 20.0], split=False)
    assert bounded_forgetting(p, 10.0) == 0.0


def test_a_batch_without_items_has_nothing_to_forget():
    value = bounded_forgetting(prediction([])[0], 10.0)
    assert value == 0.0


def test_soft_kl_is_zero_for_equal_scores_and_shifts():
    scores = torch.randn(4, 5)
    torch.testing.assert_close(soft_kl(scores, scores), torch.tensor(0.0))
    torch.testing.assert_close(soft_kl(scores + 3, scores, 2.0), torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_kl_is_the_sum_over_classes_of_p_log_p_over_q(temperature):
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean() * temperature**2
    torch.testing.assert_close(soft_kl(student, teacher, temperature), expected)


def test_soft_kl_trains_the_student_only():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_kl(student, teacher).backward()
    torch.testing.assert_close(student.grad, (F.softmax(student, -1) - F.softmax(teacher, -1)).detach() / 2)
    assert teacher.grad is None


def test_soft_kl_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"`student` is \(2, 3\) but `teacher` is \(2, 4\)"):
        soft_kl(torch.zeros(2, 3), torch.zeros(2, 4))
