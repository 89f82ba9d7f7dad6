import io
import pickle

import numpy as np
import pytest
import torch
from ks_classification.face import FaceTransformer
from ks_classification.verification import (
    closed_set_accuracy,
    distances,
    embed,
    make_pairs,
    read_bin,
    tar_at_far,
    verify,
)
from PIL import Image

from common.errors import UserError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FaceTransformer(4, depth=1, width=64, num_heads=1, hidden=32, image_size=16).eval()


def test_pairs_are_balanced_different_and_true():
    labels = np.repeat(np.arange(6), 5)
    pairs, same = make_pairs(labels, 40, seed=3)
    assert len({tuple(p) for p in pairs}) == 80 and (pairs[:, 0] < pairs[:, 1]).all()
    assert np.array_equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    assert same.tolist() == [True, False] * 40
    assert np.array_equal(make_pairs(labels, 40, seed=3)[0], pairs)
    assert not np.array_equal(make_pairs(labels, 40, seed=4)[0], pairs)


def test_more_pairs_than_there_are_is_an_error():
    with pytest.raises(UserError, match="3 pairs"):
        make_pairs([0, 0, 0, 1], 4)


def test_separable_pairs_are_all_right_and_chance_is_half():
    same = np.tile([True, False], 50)
    result = verify(np.where(same, 0.5, 1.5), same)
    assert result.accuracy == 100 and result.deviation == 0 and result.auc == 100
    assert 0.5 < result.threshold < 1.5 and set(result.tar.values()) == {100.0}
    noise = np.random.default_rng(0).random(2000) * 2
    assert abs(verify(noise, np.tile([True, False], 1000)).accuracy - 50) < 4


def test_threshold_of_a_fold_does_not_see_the_fold():
    """Only the last fold is separated elsewhere: its pairs are judged by the others' threshold and lose."""
    same = np.tile([True, False], 10)
    distance = np.where(same, 0.5, 1.5)
    distance[18:] = [2.0, 3.0]
    result = verify(distance, same, folds=10)
    assert result.accuracy == pytest.approx(95)


def test_accuracy_equals_a_direct_count():
    rng = np.random.default_rng(1)
    same = rng.random(60) < 0.5
    distance = np.where(same, rng.normal(1, 0.4, 60), rng.normal(1.5, 0.4, 60)).clip(0, 4)
    scores = []
    for fold in np.split(np.arange(60), 5):
        rest = np.setdiff1d(np.arange(60), fold)
        grid = [k / 100 for k in range(400)]
        best = max(grid, key=lambda t: ((distance[rest] < t) == same[rest]).sum())
        scores.append(100 * ((distance[fold] < best) == same[fold]).mean())
    assert verify(distance, same, folds=5).accuracy == pytest.approx(np.mean(scores))


def test_true_accept_rate_never_uses_a_higher_false_accept_rate():
    same = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    distance = np.array([0.1, 0.2, 0.5, 0.9, 0.3, 0.6, 0.7, 0.8])
    assert tar_at_far(distance, same, [0.0, 0.1, 0.25, 0.5, 1.0]) == {0.0: 50, 0.1: 50, 0.25: 75, 0.5: 75, 1.0: 100}


def test_verification_needs_both_kinds_and_enough_pairs():
    with pytest.raises(UserError, match="one identity"):
        verify(np.ones(20), np.ones(20))
    with pytest.raises(UserError, match="at least 10"):
        verify(np.ones(4), np.array([1, 0, 1, 0]))


def test_embeddings_are_unit_vectors_that_do_not_see_a_mirror(model):
    images = torch.rand(5, 3, 16, 16)
    z = embed(model, images, batch_size=2)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(z, embed(model, images.flip(-1)))
    pairs = np.array([[0, 0], [0, 1]])
    found = distances(z, pairs)
    assert found[0] == 0 and found[1] == pytest.approx(float(2 - 2 * z[0] @ z[1]), abs=1e-5)


def test_embedding_leaves_the_mode_of_the_model_alone(model):
    model.train()
    embed(model, torch.rand(1, 3, 16, 16))
    assert model.training
    model.eval()


def test_margin_accuracy_is_never_above_the_real_one(model):
    images, labels = torch.rand(24, 3, 16, 16), torch.arange(24) % 4
    batches = [(images[:10], labels[:10]), (images[10:], labels[10:])]
    real, margin = closed_set_accuracy(model, batches), closed_set_accuracy(model, batches, margin=True)
    assert set(real) == {"total", 0, 1, 2, 3} and all(margin[k] <= real[k] for k in real)
    with torch.no_grad():
        expected = 100 * (model.head(model(images)).argmax(1) == labels).double().mean().item()
    assert real["total"] == pytest.approx(expected) == pytest.approx(np.mean([real[c] for c in range(4)]))
    with pytest.raises(UserError, match="no images"):
        closed_set_accuracy(model, [])


def picture(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "arrays"])
def test_verification_file_is_read_in_0_to_1(kind, tmp_path):
    items = [picture(255 * (i % 2)) for i in range(4)]
    if kind == "arrays":
        items = [np.frombuffer(item, dtype=np.uint8) for item in items]
    (tmp_path / "x.bin").write_bytes(pickle.dumps((items, [True, False]), protocol=2))
    images, pairs, same = read_bin(tmp_path / "x.bin")
    assert images.shape == (4, 3, 4, 4) and images[:, 0].amax(dim=(1, 2)).tolist() == [0, 1, 0, 1]
    assert pairs.tolist() == [[0, 1], [2, 3]] and same.tolist() == [True, False]


class Trap:
    def __reduce__(self):
        return print, ("run!",)


@pytest.mark.parametrize(
    "content", [pickle.dumps(Trap()), b"text", b"", pickle.dumps(([b"no picture"], [True])), pickle.dumps(3)]
)
def test_a_verification_file_runs_nothing_and_damage_is_one_line(content, tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.bin") as error:
        read_bin(tmp_path / "x.bin")
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_two_pictures_per_answer(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([picture(1)], [True])))
    with pytest.raises(UserError, match="two per answer"):
        read_bin(tmp_path / "x.bin")
    with pytest.raises(UserError, match="No such file"):
        read_bin(tmp_path / "absent.bin")
