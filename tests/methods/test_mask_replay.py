"""The default method: forgotten items get the answers that are left without their class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blobs import REST, begun, forget_plan, gradients, predictions, pretrained, step_of, trainer
from toy import DOMAINS, make_trainer, pretrain, swap_plan

from common.losses import masked_kl
from common.methods.mask_replay import EVEN, matched
from common.plan import Plan, make_plan
from common.record import STEPS, read_lines
from common.train_config import TrainConfig

METHOD = "mask_replay"


def test_the_loss_is_the_keep_loss_and_the_distance_to_the_masked_old_answers(tmp_path):
    t, phase = begun(METHOD, tmp_path, mask_weight=0.7, mask_temperature=0.5)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    wanted = target.scores.detach()[:, 1:] / 0.5  # c0 is row 0, and the adapters are fresh
    expected = F.kl_div(target.scores.log_softmax(1)[:, 1:], wanted.softmax(1), reduction="batchmean")
    torch.testing.assert_close(t.method.loss(step), keep.loss + 0.7 * expected)


def test_classes_that_are_gone_or_not_learned_yet_get_no_share_either(tmp_path):
    plan = Plan(
        "three", {"a": ("c0",), "b": ("c1",), "new": ("c4",), "r": ("c2", "c3")},
        (("forget", ("a",)), ("forget", ("b",)), ("learn", ("new",))),
    )  # fmt: skip
    t = trainer(pretrained(4), plan, METHOD, tmp_path, mask_weight=1.0, mask_temperature=1.0)
    phase = plan.phases[1]
    t.method.begin_phase(phase)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    left = [2, 3, 5]  # c5 is a row that no phase speaks of
    expected = F.kl_div(target.scores.log_softmax(1)[:, left], target.scores[:, left].softmax(1), reduction="batchmean")
    torch.testing.assert_close(t.method.loss(step) - keep.loss, expected)


def test_masked_kl_is_zero_at_its_own_answer_and_needs_no_item():
    scores = torch.randn(5, 4, dtype=torch.double)
    student = (scores / 0.5).index_fill(1, torch.tensor([1, 3]), -1e10)
    assert masked_kl(student, scores, [1, 3], 0.5).item() == pytest.approx(0, abs=1e-6)
    assert masked_kl(scores[:0].requires_grad_(), scores[:0], [1]).item() == 0


@pytest.fixture
def seeing(monkeypatch):
    """A domain whose items can be compared by what they look like."""
    domain = pretrained(4)
    monkeypatch.setattr(domain, "seen", lambda model, batch: batch.points)
    return domain


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_shifted_and_sharpened_to_a_mean_and_a_certainty(seed):
    torch.manual_seed(seed)
    scores = 3 * torch.randn(200, 4)
    share = (2 * torch.randn(200, 4) + torch.tensor([3.0, 0, 0, -1])).softmax(1)
    answers = matched(scores, share).exp()
    wanted = (1 - EVEN) * share + EVEN / 4
    torch.testing.assert_close(answers.sum(1), torch.ones(200))
    torch.testing.assert_close(answers.mean(0), wanted.mean(0), atol=5e-3, rtol=0)
    assert answers.amax(1).mean().item() == pytest.approx(wanted.amax(1).mean().item(), abs=5e-3)
    again = matched(2 * scores - 7, share).exp()  # neither scale nor origin of the scores count
    torch.testing.assert_close(again, answers, atol=1e-2, rtol=0)


def test_forgotten_items_are_answered_on_average_as_their_neighbours_are(seeing, tmp_path):
    t, phase = begun(METHOD, tmp_path, domain=seeing, mask_answers="neighbours", mask_neighbours=3, mask_weight=0.7)
    assert t.method.teacher is None  # no second model
    kept, own = torch.cat([seeing.data[True][c] for c in REST]), seeing.data[True]["c0"]
    near = torch.cdist(own, kept).topk(3, largest=False).indices // len(seeing.data[True]["c1"])
    counts = torch.bincount(near.flatten(), minlength=len(REST)) / near.numel()
    answers = torch.stack([t.method.answers[f"c0/{i}"] for i in range(len(own))]).exp()
    wanted = torch.zeros(len(seeing.classes))
    wanted[seeing.classes.rows(REST)] = (1 - EVEN) * counts + EVEN / len(REST)
    torch.testing.assert_close(answers.mean(0), wanted, atol=1e-2, rtol=0)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    own = torch.stack([t.method.answers[name] for name in step.target.names])
    expected = F.kl_div(target.scores.log_softmax(1), own.exp(), reduction="batchmean")
    torch.testing.assert_close(t.method.loss(step), keep.loss + 0.7 * expected)


def test_they_forget_and_end_with_the_run(seeing, tmp_path):
    t = trainer(
        seeing, forget_plan(), METHOD, tmp_path, mask_answers="neighbours", steps=60, batch_size=32, lora_rank=4
    )
    last = {line["group"]: line["score"] for line in t.swap() if "score" in line}
    assert last["forget"] == 0 and last["retain"] > 95


def test_with_nothing_kept_or_no_view_of_the_items_the_old_answers_stay_the_target(seeing, tmp_path):
    plan = Plan("alone", {"a": ("c0", "c1")}, (("forget", ("a",)),))
    for domain, wanted in ((seeing, plan), (pretrained(4), forget_plan())):
        t, _ = begun(METHOD, tmp_path, wanted, domain, mask_answers="neighbours")
        assert t.method.teacher is not None and not t.method.answers


def test_a_resumed_run_has_the_same_answers(seeing, tmp_path):
    t, _ = begun(METHOD, tmp_path, domain=seeing, mask_answers="neighbours")
    again = trainer(seeing, forget_plan(), METHOD, tmp_path / "again", mask_answers="neighbours")
    again.method.load_state_dict(t.method.state_dict())
    assert t.method.answers and all(torch.equal(again.method.answers[n], a) for n, a in t.method.answers.items())


def test_a_learn_phase_is_that_of_replay(tmp_path):
    plan, losses = make_plan("learn", ["c4"], ["c0"], REST), {}
    for method in (METHOD, "replay"):
        t, phase = begun(method, tmp_path / method, plan)
        t.model.eval()
        losses[method] = t.method.loss(step_of(t, phase))
        if method == METHOD:
            assert t.method.teacher is None
    torch.testing.assert_close(losses[METHOD], losses["replay"], rtol=0, atol=0)


def test_where_classes_do_not_exclude_one_another_a_forget_phase_without_hold_is_that_of_replay(tmp_path, monkeypatch):
    domain = pretrained(4)
    monkeypatch.setattr(domain, "exclusive", False)
    grads = {}
    for method in (METHOD, "replay"):
        t, phase = begun(method, tmp_path / method, domain=domain)
        assert getattr(t.method, "teacher", None) is None
        t.model.eval()
        grads[method] = gradients(t, t.method.loss(step_of(t, phase)))
    for name, grad in grads["replay"].items():
        torch.testing.assert_close(grads[METHOD][name], grad, rtol=0, atol=0)


def test_there_kept_items_are_held_at_what_they_were_as_the_phase_began(tmp_path, monkeypatch):
    """hold_weight relu(m(keep) - m_before(keep)), 0 before the first step and for items that are found better."""
    domain = pretrained(4)
    monkeypatch.setattr(domain, "exclusive", False)
    t, phase = begun(METHOD, tmp_path / METHOD, domain=domain, hold_weight=2.0)
    plain, _ = begun("replay", tmp_path / "replay", domain=domain)
    step = step_of(t, phase)
    t.model.eval(), plain.model.eval()
    torch.testing.assert_close(t.method.loss(step), plain.method.loss(step), rtol=0, atol=0)
    target, keep = predictions(t, step)
    changes = torch.linspace(-0.5, 1, len(keep.item_loss))
    moved = keep._replace(item_loss=keep.item_loss + changes)
    added = t.method.swap_loss(step, target, moved) - plain.method.swap_loss(step, target, moved)
    torch.testing.assert_close(added, 2 * changes.clamp(min=0).mean())


def test_it_is_the_default_and_forgets_what_the_group_lasso_holds(tmp_path):
    """The plan that only forgets, on a saturated classifier: see `test_methods` for the lasso."""
    assert TrainConfig.method == METHOD
    domain = DOMAINS["classification"](pretrain("classification", tmp_path / "base"))
    scores = {}
    t = make_trainer(domain, swap_plan("forget"), METHOD, tmp_path / "run", steps=40, batch_size=16, lora_rank=4)
    for line in t.swap():
        if "score" in line:
            scores.setdefault(line["group"], []).append(line["score"])
    assert scores["forget"][0] > 90 and scores["forget"][-1] == 0
    assert scores["retain"][-1] > scores["retain"][0] - 3


def test_the_curves_name_both_parts(tmp_path):
    trainer(pretrained(4), forget_plan(), METHOD, tmp_path, steps=2).swap()
    assert {"keep", "target", "masked"} <= set(read_lines(tmp_path / STEPS)[0])
