"""Laws of the unlearning methods: what each must do by its own equation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blobs import REST, begun, forget_plan, gradients, predictions, pretrained, step_of, trainer

from common.errors import UserError
from common.methods._base import Position
from common.methods._snapshots import copied, trained
from common.methods.salun import largest
from common.plan import Plan, make_plan


def assert_zero(grads, atol=1e-6):
    for grad in grads.values():
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=atol, rtol=0)


# ---- ascent and descent ----------------------------------------------------------------------------------


def test_gradient_ascent_is_the_supervised_gradient_turned_round(tmp_path):
    t, phase = begun("gradient_ascent", tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    up, down = gradients(t, t.method.loss(step)), gradients(t, t.domain.predict(t.model, step.target).loss)
    for name in up:
        torch.testing.assert_close(up[name], -down[name])


def test_gradient_ascent_stops_at_its_bound(tmp_path):
    t, phase = begun("gradient_ascent", tmp_path, ascent_bound=1e-9)
    step = step_of(t, phase)
    t.model.eval()
    assert_zero(gradients(t, t.method.loss(step)))


def test_neg_grad_plus_weighs_descent_and_ascent(tmp_path):
    t, phase = begun("neg_grad_plus", tmp_path, keep_share=0.9)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    expected = 0.9 * keep.loss - 0.1 * target.loss
    torch.testing.assert_close(t.method.loss(step), expected)
    with pytest.raises(UserError, match="--keep-share"):
        begun("neg_grad_plus", tmp_path, keep_share=1.5)


def test_rehearsal_never_looks_at_the_forget_set(tmp_path):
    t, phase = begun("rehearsal", tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    before = t.method.loss(step)
    step.target = None
    torch.testing.assert_close(t.method.loss(step), before)


def test_relabel_asks_for_kept_classes_only(tmp_path):
    t, phase = begun("relabel", tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    pull = torch.autograd.grad(t.method.swap_loss(step, *_on_scores(t, step)), t.asked)[0]
    assert (pull[:, [0, 4, 5]] >= 0).all()  # no item is asked to be class 0, the forgotten one, or an unknown one
    assert (pull[:, 1:4].min(1).values < 0).all()


def _on_scores(t, step):
    """Predictions whose target scores are a leaf, `t.asked`."""
    target, keep = predictions(t, step)
    t.asked = target.scores.detach().requires_grad_(True)
    return target._replace(scores=t.asked), keep._replace(loss=keep.loss.detach())


# ---- SalUn -----------------------------------------------------------------------------------------------


def test_the_saliency_mask_holds_exactly_its_share_and_the_largest_slopes():
    values = {"a": torch.randn(7, 3), "b": torch.randn(9)}
    mask = largest(values, 0.3)
    flat, on = torch.cat([v.flatten() for v in values.values()]).abs(), torch.cat([m.flatten() for m in mask.values()])
    assert on.sum() == 9 and flat[on].min() >= flat[~on].max()


@pytest.mark.parametrize("carry", [True, False])
def test_weights_outside_the_mask_move_neither_by_decay_nor_by_momentum(carry, tmp_path):
    """The published code multiplied the gradient by the mask and let decay and momentum through."""
    plan = make_plan("fltf", ["c4"], ["c0"], REST)
    t = trainer(pretrained(4), plan, "salun", tmp_path, saliency=0.2, weight_decay=0.5, carry_optimizer=carry)
    seen = {}
    begin, end = t.method.begin_phase, t.method.end_phase

    def begun_phase(phase):
        begin(phase)
        seen.update(mask=dict(t.method.mask), before=copied(t.model))

    t.method.begin_phase = begun_phase
    t.method.end_phase = lambda phase: (end(phase), seen.update(after=copied(t.model)))
    t.swap()
    moved = 0
    for name, mask in seen["mask"].items():
        assert torch.equal(seen["before"][name][~mask], seen["after"][name][~mask]), name
        moved += (seen["before"][name][mask] != seen["after"][name][mask]).sum().item()
    assert moved > 0


# ---- teachers --------------------------------------------------------------------------------------------


def test_bad_teaching_leaves_kept_items_alone_at_the_start(tmp_path):
    t, phase = begun("bad_teaching", tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    loss = t.method.forget_loss(step, target._replace(scores=target.scores.detach()), keep)
    assert_zero(gradients(t, loss))


def test_the_incompetent_teacher_follows_from_the_seed(tmp_path):
    scores = []
    for folder in ("a", "b"):
        t, phase = begun("bad_teaching", tmp_path / folder)
        step = step_of(t, phase)
        torch.rand(3)  # the state of the generator must not matter
        scores.append(t.method._bad_scores(step, predictions(t, step)[0]))
    assert torch.equal(*scores) and scores[0].abs().sum() > 0


def test_a_uniform_teacher_needs_no_second_model(tmp_path):
    t, phase = begun("bad_teaching", tmp_path, incompetent="uniform")
    step = step_of(t, phase)
    t.method.loss(step)
    assert t.method._incompetent is None and "bad" in step.terms


@pytest.mark.parametrize("masked", ["forgotten", "true"])
def test_delete_wants_the_old_answer_without_the_forgotten_class(masked, tmp_path):
    plan = Plan("two", {"f": ("c0", "c1"), "r": ("c2", "c3")}, (("forget", ("f",)),))
    t, phase = begun("delete", tmp_path, plan, masked=masked)
    step = step_of(t, phase)
    (old,) = t.method.teacher.predict(t.domain, [step.target])
    wanted = t.method.masked_scores(step, old.scores, old.labels).softmax(-1)
    p = old.scores.softmax(-1)
    gone = F.one_hot(old.labels, 6).bool() if masked == "true" else torch.arange(6).expand_as(p) < 2
    assert (wanted[gone] == 0).all()
    expected = p.masked_fill(gone, 0)
    torch.testing.assert_close(wanted, expected / expected.sum(-1, keepdim=True))
    target, _ = predictions(t, step)
    student = target._replace(scores=t.method.masked_scores(step, target.scores, target.labels))
    assert t.method.forget_loss(step, student, None).item() == pytest.approx(0, abs=1e-6)


def test_delete_reads_no_kept_item(tmp_path):
    t, phase = begun("delete", tmp_path)
    step = step_of(t, phase)
    t.method.loss(step)
    assert step.keep is None


def test_scrub_starts_without_a_push_and_ends_with_min_steps(tmp_path):
    t, phase = begun("scrub", tmp_path, epochs=4)
    per_epoch, total = t._length(phase)
    batch = step_of(t, phase)
    steps = []
    for number in range(total):
        batch.at = Position(phase, number, total, per_epoch)
        steps.append(t.method.is_max(batch))
    assert steps[0] and not any(steps[total // 2 :])
    assert sum(steps[:per_epoch]) == -(-16 // 8)  # one pass over the forget set, then the rest of the epoch
    batch.at = Position(phase, 0, total, per_epoch)
    t.model.eval()
    assert_zero(gradients(t, t.method.loss(batch)))  # student = teacher: nothing to push away from yet


@pytest.mark.parametrize("rounds", [1, 2])
def test_scrub_s_is_pulled_to_the_model_before_the_phase_until_a_round_ends(rounds, tmp_path):
    t, phase = begun("scrub_s", tmp_path, rounds=rounds)
    members = trained(t.model)
    start = copied(t.model)
    with torch.no_grad():
        for p in members.values():
            p.add_(0.1)
    step = step_of(t, phase)
    t.method._pull(step)
    distances = sum((p - start[name]).norm() for name, p in members.items())
    torch.testing.assert_close(step.terms["pull"], distances.detach())
    t.method.after_step(step, 0.1)  # step 0 of 10 ends no round
    name, value = next(iter(members)), t.method.average.values[0]
    torch.testing.assert_close(value, start[name])
    last = step_of(t, phase, number=10 // rounds - 1)
    t.method.after_step(last, 0.1)
    torch.testing.assert_close(t.method.average.values[0], 0.9 * start[name] + 0.1 * members[name])


def test_scrub_s_is_scrub_without_smoothing(tmp_path):
    results = []
    for method, extra in (("scrub", {"rounds": 2}), ("scrub_s", {"rounds": 2, "smoothing": 0.0})):
        t = trainer(pretrained(4), forget_plan(), method, tmp_path / method, **extra)
        t.swap()
        results.append(copied(t.model))
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


# ---- SSD -------------------------------------------------------------------------------------------------


def test_ssd_shrinks_what_matters_more_to_the_forget_set_and_nothing_else(tmp_path):
    t = trainer(pretrained(4), forget_plan(), "ssd", tmp_path, selection=2.0)
    before = copied(t.model)
    phase = t.plan.phases[0]
    d, d_f = t.method._importance((*phase.keep, *phase.target)), t.method._importance(phase.target)
    t.method.begin_phase(phase)
    chosen = 0
    for name, p in trained(t.model).items():
        on = d_f[name] > 2 * d[name]
        chosen += on.sum().item()
        assert torch.equal(p[~on], before[name][~on])
        torch.testing.assert_close(p[on], before[name][on] * (d[name] / d_f[name])[on])
        assert (p.abs() <= before[name].abs()).all()
    assert chosen > 0


def test_ssd_weighs_kept_and_forgotten_items_by_what_there_is_and_not_by_what_is_drawn(tmp_path, monkeypatch):
    """A tenth of the keep set and all of the forget set: the mean over all data is still mostly that of the keep set."""
    t = trainer(pretrained(4), forget_plan(), "ssd", tmp_path)
    phase = t.plan.phases[0]
    kept, forget = t.method._importance(phase.keep), t.method._importance(phase.target)
    for whole, share in ((480, 16 / 496), (48, 16 / 64)):
        sizes = {phase.keep: whole, phase.target: 16}
        monkeypatch.setattr(t.domain, "whole_size", lambda classes, sizes=sizes: sizes[classes])
        for name, value in t.method._of_all(phase, forget).items():
            torch.testing.assert_close(value, (1 - share) * kept[name] + share * forget[name])


def test_ssd_changes_nothing_when_all_is_forgotten(tmp_path):
    plan = Plan("all", {"f": ("c0", "c1", "c2", "c3")}, (("forget", ("f",)),))
    t = trainer(pretrained(4), plan, "ssd", tmp_path)
    before = copied(t.model)
    t.swap()
    assert all(torch.equal(p, before[n]) for n, p in trained(t.model).items())


def test_ssd_trains_no_step(tmp_path):
    t = trainer(pretrained(4), forget_plan(), "ssd", tmp_path)
    t.swap()
    assert (tmp_path / "steps.jsonl").read_text() == ""
    assert t.done["phase"] == 2
