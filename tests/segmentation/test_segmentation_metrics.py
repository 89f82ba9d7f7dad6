"""mIoU and its companions against a direct count."""

import os

import numpy as np
import pytest
import torch
from ks_segmentation.scores import Confusion

from common.errors import UserError


def direct(predicted, true, count, ignore):
    """Per-class IoU and ACC by looking at every pixel, and the four means."""
    keep = true != ignore
    p, t = predicted[keep], true[keep]
    iou, acc, share = {}, {}, {}
    for k in range(count):
        right = int(((p == k) & (t == k)).sum())
        truth, said = int((t == k).sum()), int((p == k).sum())
        if truth:
            iou[k], acc[k], share[k] = 100 * right / (truth + said - right), 100 * right / truth, truth / len(t)
    miou, macc = np.mean(list(iou.values())), np.mean(list(acc.values()))
    fwiou = sum(iou[k] * share[k] for k in iou)
    return iou, acc, miou, fwiou, macc, 100 * float((p == t).mean())


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_direct_count_on_random_maps(seed):
    random = np.random.default_rng(seed)
    counts, all_p, all_t = Confusion("abcdefg"), [], []
    for _ in range(4):
        shape = random.integers(5, 40, 2)
        true = random.choice([0, 1, 2, 4, 255], shape)  # classes 3, 5, 6 never occur
        predicted = np.where(random.random(shape) < 0.6, np.where(true == 255, 0, true), random.integers(0, 7, shape))
        counts.add(torch.from_numpy(predicted), torch.from_numpy(true))
        all_p.append(predicted.ravel()), all_t.append(true.ravel())
    s = counts.scores()
    iou, acc, miou, fwiou, macc, pacc = direct(np.concatenate(all_p), np.concatenate(all_t), 7, 255)
    for k, value in iou.items():
        assert s.iou["abcdefg"[k]] == pytest.approx(value) and s.acc["abcdefg"[k]] == pytest.approx(acc[k])
    assert (s.miou, s.fwiou, s.macc, s.pacc) == pytest.approx((miou, fwiou, macc, pacc))
    assert np.isnan(s.acc["d"])


def test_a_class_without_truth_lowers_no_mean_but_its_pixels_count_as_wrong():
    counts = Confusion(["a", "b"])
    counts.add(torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 0], [0, 255]]))
    s = counts.scores()
    assert s.miou == pytest.approx(200 / 3) and s.iou["b"] == 0 and s.pacc == pytest.approx(200 / 3)


def test_what_is_ignored_counts_nowhere():
    counts = Confusion(["a", "b"])
    counts.add(torch.ones(3, 3, dtype=torch.long), torch.full((3, 3), 255))
    assert counts.matrix.sum() == 0 and np.isnan(counts.scores().miou)


def test_sizes_and_ids_are_checked():
    with pytest.raises(UserError, match="pixels"):
        Confusion("ab").add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(UserError, match="mask holds the id 5"):
        Confusion("ab").add(torch.zeros(2, 2), torch.full((2, 2), 5))
    with pytest.raises(UserError, match="answer holds the id 5"):
        Confusion("ab").add(torch.full((2, 2), 5), torch.zeros(2, 2))


@pytest.mark.skipif("KS_CAMVID" not in os.environ, reason="set KS_CAMVID to a CamVid folder (images/, annotations/)")
def test_scores_equal_a_direct_count_on_camvid():
    """Each test mask answered by the mask of the picture before it: real shapes, partly right."""
    from ks_segmentation.data import layouts

    data = layouts.load(os.environ["KS_CAMVID"])
    masks = [item.ids() for item in data.test]
    counts = Confusion(data.classes)
    answers = [np.where(m == 255, 0, m) for m in [masks[-1], *masks[:-1]]]
    for answer, mask in zip(answers, masks, strict=True):
        counts.add(torch.from_numpy(answer), torch.from_numpy(mask))
    s = counts.scores()
    iou, acc, miou, fwiou, macc, pacc = direct(
        np.stack(answers).ravel(), np.stack(masks).ravel(), len(data.classes), 255
    )
    assert {data.classes[k]: pytest.approx(v) for k, v in iou.items()} == {k: v for k, v in s.iou.items() if v == v}
    assert (s.miou, s.fwiou, s.macc, s.pacc) == pytest.approx((miou, fwiou, macc, pacc))
