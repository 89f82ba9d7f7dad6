"""Forgotten items lose the neighbours of their own class, in every adapted block."""

from __future__ import annotations

import math

import pytest
import torch
from blobs import begun, predictions, step_of

from common.features import blocks, watched
from common.losses import bounded_forgetting
from common.methods.disperse import own_share

METHOD = "disperse"


def test_the_loss_is_that_of_replay_and_the_neighbours_of_all_blocks(tmp_path):
    t, phase = begun(METHOD, tmp_path, disperse_weight=0.7, forget_weight=0.3, bound=5.0)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    with watched(t.model, blocks(t.domain, t.model)) as seen:
        t.domain.predict_together(t.model, [step.target, step.keep])
    assert len(seen) == 2
    labels = torch.cat([target.labels, keep.labels])
    places = [*seen.values(), torch.cat([target.embedding, keep.embedding])]
    classes = len(phase.target) + len(phase.keep)
    shares = [own_share(x, labels, len(target.labels), 0.1) for x in places]
    apart = sum(torch.relu(math.log(1 - 1 / classes) - (1 - share).log()).mean() for share in shares) / 3
    expected = keep.loss + 0.3 * bounded_forgetting(target, 5.0) + 0.7 * apart
    torch.testing.assert_close(t.method.loss(step), expected)


def test_the_share_follows_its_equation():
    features, labels = torch.randn(7, 5), torch.tensor([0, 0, 1, 0, 2, 2, 2])
    kept = features[4:]
    z = torch.nn.functional.normalize((features - kept.mean(0)) / kept.std(0, correction=0), dim=1)
    weights = (z[:4] @ z.T / 0.5).exp() / torch.tensor([3.0, 3, 1, 3, 3, 3, 3])
    for i in range(4):
        others = [j for j in range(7) if j != i]
        own = sum(weights[i, j] for j in others if labels[j] == labels[i])
        torch.testing.assert_close(own_share(features, labels, 4, 0.5)[i], own / weights[i, others].sum() if own else torch.tensor(0.0), rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_tight_classes_have_only_own_neighbours_and_units_do_not_matter(scale):
    centres = torch.eye(4)
    labels = torch.arange(4).repeat_interleave(5)
    features = scale * (centres[labels] + 0.01 * torch.randn(20, 4))
    assert own_share(features, labels, 10, 0.1).min() > 0.9
    shuffled = own_share(scale * torch.randn(200, 3), torch.arange(200) % 4, 100, 1.0)
    assert abs(shuffled.mean().item() - 0.25) < 0.05
