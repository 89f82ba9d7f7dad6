import pytest
import torch

from common.errors import UserError
from common.prototypes import class_means, stacked


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(20, 6), torch.randint(0, 3, (20,))


def test_means_equal_a_direct_computation_whatever_the_batches(data):
    z, y = data
    for sizes in ([20], [7, 7, 6], [1] * 20):
        found = class_means(zip(z.split(sizes), y.split(sizes), strict=True))
        assert list(found) == sorted(y.unique().tolist())
        for c, mean in found.items():
            torch.testing.assert_close(mean, z[y == c].mean(0))


def test_normalized_means_do_not_see_lengths(data):
    z, y = data
    a, b = class_means([(z, y)], normalize=True), class_means([(z * torch.rand(20, 1), y)], normalize=True)
    for c in a:
        torch.testing.assert_close(a[c], b[c])


def test_sums_are_exact_in_low_precision():
    z = torch.full((4000, 1), 1.0, dtype=torch.bfloat16)
    assert class_means((part, torch.zeros(40)) for part in z.split(40))[0].item() == 1


def test_stacked_leaves_out_classes_without_a_prototype():
    found = {0: torch.zeros(2), 2: torch.ones(2)}
    rows, known = stacked(found, torch.tensor([2, 1, 0, 2]))
    assert known.tolist() == [True, False, True, True] and rows[:, 0].tolist() == [1, 0, 1]
    rows, known = stacked(found, torch.tensor([1, 1]))
    assert rows.shape == (0, 2) and not known.any()


def test_shapes_must_fit():
    with pytest.raises(UserError, match=r"\[N, D\]"):
        class_means([(torch.zeros(3, 2), torch.zeros(2))])
