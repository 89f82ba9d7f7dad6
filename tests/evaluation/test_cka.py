import pytest
import torch

from common.errors import UserError
from common.evaluation.cka import DISTANCES, distribution_distance, linear_cka


@pytest.fixture(params=[(40, 6), (8, 30)])
def x(request):
    return torch.randn(*request.param, generator=torch.Generator().manual_seed(0))


def test_equals_the_centred_gram_form(x):
    y = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(1))
    centre = torch.eye(len(x)).double() - 1 / len(x)
    k, l = (centre @ (z @ z.T).double() @ centre for z in (x, y))
    expected = (k * l).sum() / (k.norm() * l.norm())
    assert linear_cka(x, y) == pytest.approx(expected.item(), abs=1e-6)


def test_rotation_shift_and_scale_are_not_seen(x):
    rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(2)))[0]
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, x) == pytest.approx(1)


def test_it_is_symmetric_and_low_for_unrelated_data():
    a, b = torch.randn(2, 3000, 4, generator=torch.Generator().manual_seed(3))
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a)) and 0 <= linear_cka(a, b) < 0.02


def test_constant_embeddings_are_like_nothing(x):
    assert linear_cka(x, torch.ones_like(x)) == 0


@pytest.mark.parametrize("kind", DISTANCES)
def test_distance_to_itself_is_zero_and_grows(kind, x):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    near, far = (distribution_distance(x, x + s * noise, kind) for s in (0.1, 1.0))
    assert abs(distribution_distance(x, x, kind)) < 1e-9 < near < far


def test_distances_are_means_over_items():
    x, y = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert distribution_distance(x, y, "euclidean") == 2.5 and distribution_distance(x, y, "manhattan") == 3.5


def test_shapes_must_fit():
    with pytest.raises(UserError, match="same N"):
        linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(UserError, match="equal widths"):
        distribution_distance(torch.zeros(3, 2), torch.zeros(3, 4), "euclidean")
    with pytest.raises(UserError, match="linear_cka, euclidean"):
        distribution_distance(torch.zeros(3, 2), torch.zeros(3, 2), "mmd")
