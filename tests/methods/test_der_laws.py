"""DER: which logits are matched."""

from __future__ import annotations

import pytest
import torch
from blobs import begun, predictions, pretrained, step_of, trainer

from common.plan import Plan


def test_der_matches_logits_and_the_published_variant_embeddings(tmp_path):
    t, phase = begun("der", tmp_path / "a", trains="all")
    step = step_of(t, phase)
    with torch.no_grad():
        t.model.head.bias += 1
    t.model.eval()
    shifted = t.method.retention(step, *predictions(t, step)).item()
    assert shifted == pytest.approx(t.method.config.logit_weight, rel=1e-4)  # every logit moved by 1, mean square 1
    t, phase = begun("der", tmp_path / "b", trains="all", published_embeddings=True)
    with torch.no_grad():
        t.model.head.bias += 1
    t.model.eval()
    assert t.method.retention(step, *predictions(t, step)).item() == 0


def test_a_teacher_with_adapters_shares_every_frozen_tensor(tmp_path):
    t, _ = begun("lwf", tmp_path, trains="adapter")
    shared = {id(p) for p in t.model.parameters() if not p.requires_grad}
    own = [p for p in t.method.teacher.module.parameters() if id(p) not in shared]
    assert sum(p.numel() for p in own) == sum(p.numel() for p in trained(t.model).values())


def test_a_teacher_does_not_follow_the_student(tmp_path):
    t, phase = begun("lwf", tmp_path)
    step = step_of(t, phase)
    (before,) = t.method.taught([step.keep])
    with torch.no_grad():
        for p in trained(t.model).values():
            p.add_(1)
    torch.testing.assert_close(t.method.taught([step.keep])[0].scores, before.scores, rtol=0, atol=0)


def test_the_teacher_is_renewed_per_phase_or_kept_from_the_start(tmp_path):
    plan = Plan("two", {"a": ("c0",), "b": ("c1",), "rest": ("c2", "c3")}, (("forget", ("a",)), ("forget", ("b",))))
    for teacher in ("phase", "pretrained"):
        t = trainer(pretrained(4), plan, "lwf", tmp_path / teacher, teacher=teacher)
        base = copy.deepcopy(t.model)
        t.swap()
        kept = all(
            torch.equal(a, b) for a, b in zip(t.method.teacher.module.parameters(), base.parameters(), strict=True)
        )
        assert kept == (teacher == "pretrained")


# ---- wrong labels ----------------------------------------------------------------------------------------


def test_wrong_labels_are_uniform_over_the_kept_classes():
    labels = torch.zeros(6000, dtype=torch.long)
    torch.manual_seed(0)
    drawn = _relabel.relabelled(pretrained(4), forget_plan().phases[0], labels)
    assert set(drawn.tolist()) == {1, 2, 3}
    assert drawn.bincount()[1:].float().std() < 100


def test_wrong_labels_never_repeat_the_true_one():
    labels = torch.arange(6).repeat(50)
    drawn = _relabel.wrong_labels(labels, range(6))
    assert (drawn != labels).all() and drawn.min() >= 0 and drawn.max() < 6


def test_published_labels_stay_below_the_number_of_forgotten_classes():
    """The published quirk: with one forgotten class every item gets label 0, be it the true one."""
    labels = torch.tensor([0, 3, 7] * 20)
    assert (_relabel.published_labels(labels, 1) == 0).all()
    assert _relabel.published_labels(labels, 5).max() < 5


def test_no_other_label_is_an_error():
    with pytest.raises(ValueError, match="no other label"):
        _relabel.wrong_labels(torch.tensor([2]), [2])
