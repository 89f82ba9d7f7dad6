import math

import pytest
import torch
import torch.nn.functional as F
from ks_classification.models.heads import HEADS, ArcFace, CosFace, SFace, Softmax, build_head

from common.errors import UserError

MARGIN = ["cosface", "arcface"]


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])


def angles(head, z):
    return F.cosine_similarity(z[:, None], head.weight[None], dim=-1).acos()


@pytest.mark.parametrize("name", HEADS)
def test_labels_change_only_the_true_logit_and_never_raise_it(name, data):
    z, y = data
    head = build_head(name, 16, 5)
    plain, labelled = head(z), head(z, y)
    true = F.one_hot(y, 5).bool()
    torch.testing.assert_close(plain[~true], labelled[~true])
    assert (labelled[true] <= plain[true]).all()
    assert ((labelled[true] < plain[true]).all()) == (name in MARGIN)


@pytest.mark.parametrize("name", ["cosface", "arcface", "sface"])
def test_logits_are_scaled_cosines_whatever_the_lengths(name, data):
    z, _ = data
    head = build_head(name, 16, 5)
    torch.testing.assert_close(head(z), 64 * angles(head, z).cos(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head(z), head(7 * z))


def test_softmax_is_a_linear_layer(data):
    head = Softmax(16, 5)
    torch.testing.assert_close(head(data[0]), data[0] @ head.weight.T)


def test_cosface_subtracts_the_scaled_margin(data):
    z, y = data
    head = CosFace(16, 5, scale=10.0, margin=0.2)
    torch.testing.assert_close(head(z) - head(z, y), 2.0 * F.one_hot(y, 5))


def test_arcface_adds_the_margin_to_the_angle(data):
    z, y = data
    head = ArcFace(16, 5)
    theta = angles(head, z).gather(1, y[:, None])
    expected = torch.where(theta + 0.5 < math.pi, 64 * (theta + 0.5).cos(), 64 * (theta.cos() - 0.5 * math.sin(0.5)))
    torch.testing.assert_close(head(z, y).gather(1, y[:, None]), expected, rtol=1e-4, atol=1e-4)


def test_arcface_keeps_falling_beyond_pi_minus_the_margin_and_has_finite_gradients():
    head = ArcFace(2, 1, scale=1.0)
    head.weight.data = torch.tensor([[1.0, 0.0]])
    theta = torch.linspace(0, math.pi, 200)
    z = torch.stack([theta.cos(), theta.sin()], 1).requires_grad_()
    logits = head(z, torch.zeros(200, dtype=torch.long))
    assert (logits.diff(dim=0) < 1e-6).all()
    logits.sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_the_mean_over_items(name, data):
    z, y = data
    head = build_head(name, 16, 5)
    items = head.item_loss(z, y)
    assert items.shape == (6,)
    torch.testing.assert_close(head.loss(z, y), items.mean())
    torch.testing.assert_close(head.item_loss(z[2:3], y[2:3]), items[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["softmax", "cosface", "arcface"])
def test_loss_is_the_cross_entropy_of_the_labelled_logits(name, data):
    z, y = data
    head = build_head(name, 16, 5)
    torch.testing.assert_close(head.loss(z, y), F.cross_entropy(head(z, y), y))


def test_sface_gradient_is_the_weighted_sum_of_cosine_gradients(data):
    z, y = data
    head = SFace(16, 5)
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(head.loss(z, y), z)
    theta, true = angles(head, z).detach(), F.one_hot(y, 5).bool()
    pull, push = 64 / (1 + (-80 * (theta - 0.8)).exp()), 64 / (1 + (80 * (theta - 1.22)).exp())
    cosine = angles(head, z).cos()
    (expected,) = torch.autograd.grad(((torch.where(true, -pull, push) * cosine).sum(1)).mean(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_sface_lets_go_of_near_true_classes_and_of_far_wrong_ones():
    head = SFace(2, 2)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    near = torch.tensor([[1.0, 0.02]], requires_grad=True)  # angle 0.02 to its class, 1.55 to the other
    head.loss(near, torch.tensor([0])).backward()
    assert near.grad.norm() < 1e-6
    between = torch.tensor([[1.0, 1.0]], requires_grad=True)  # angle 0.79 to both
    head.loss(between, torch.tensor([0])).backward()
    assert between.grad[0, 0] < 0 < between.grad[0, 1]


def test_unknown_head_is_refused():
    with pytest.raises(UserError, match="cosface"):
        build_head("triplet", 4, 2)


@pytest.mark.parametrize("name", ["cosface", "arcface", "sface"])
def test_margin_heads_stay_exact_in_mixed_precision(name, data):
    z, y = data
    head = build_head(name, 16, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(z, y)
    torch.testing.assert_close(mixed, head(z, y))
