"""Laws of the continual-learning methods: what each must do by its own equation."""

from __future__ import annotations

import copy

import pytest
import torch
from blobs import REST, begun, forget_plan, gradients, predictions, pretrained, step_of, trainer

from common import methods
from common.errors import UserError
from common.exemplars import herd
from common.methods import _relabel
from common.methods._continual import old_rows
from common.methods._penalty import Quadratic
from common.methods._snapshots import copied, trained
from common.plan import Plan, make_plan
from common.streams import Chosen, Ordered, Stream
from common.teacher import Teacher

CONTINUAL = ("der", "der_pp", "ewc", "fdr", "l2", "lwf", "mas", "si")


# ---- penalties -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ewc", "mas", "l2"])
def test_penalty_is_zero_at_the_anchor_and_grows_with_the_square(method, tmp_path):
    t, _ = begun(method, tmp_path)
    assert t.method.penalty(t.model).item() == 0
    direction = {n: torch.randn_like(p) for n, p in trained(t.model).items()}
    values = []
    for size in (0.1, 0.2):
        with torch.no_grad():
            for n, p in trained(t.model).items():
                p.copy_(t.method.penalty.terms["all"]["anchor"][n] + size * direction[n])
        values.append(t.method.penalty(t.model).item())
    assert values[0] > 0 and values[1] == pytest.approx(4 * values[0], rel=1e-4)


def test_two_penalties_merged_equal_their_sum():
    model = torch.nn.Linear(3, 2)
    draw = lambda: {n: torch.rand_like(p) for n, p in model.named_parameters()}  # noqa: E731
    terms = [(draw(), draw()) for _ in range(3)]
    one, apart = Quadratic(), Quadratic(merge=False)
    for i, (weight, anchor) in enumerate(terms):
        one.add(str(i), weight, anchor)
        apart.add(str(i), weight, anchor)
    assert len(one.terms) == 1 and len(apart.terms) == 3
    torch.testing.assert_close(one(model), apart(model))


@pytest.mark.parametrize("method", ["ewc", "si"])
def test_penalties_refuse_stacked_adapters(method, tmp_path):
    plan, stacked = make_plan("fltf", ["c4"], ["c0"], REST), {"trains": "adapter", "lora_between_phases": "stack"}
    t = trainer(pretrained(4), plan, method, tmp_path, steps=1, **stacked)
    with pytest.raises(UserError, match="stack"):
        t.swap()


def test_a_weight_without_importance_has_no_anchor_of_its_own():
    model = torch.nn.Linear(2, 1, bias=False)
    penalty = Quadratic()
    for _ in range(2):
        penalty.add("x", {"weight": torch.zeros(1, 2)}, {"weight": torch.rand(1, 2)})
    assert penalty(model).item() == 0 and torch.isfinite(penalty.terms["all"]["anchor"]["weight"]).all()


def test_ewc_with_single_items_is_the_mean_squared_gradient(tmp_path):
    t, phase = begun("ewc", tmp_path, fisher_batch=1)
    found = t.method.importance(("c1",))
    expected = {n: torch.zeros_like(p) for n, p in trained(t.model).items()}
    points = t.domain.data[True]["c1"]
    for point in points:
        scores = t.model(point[None])
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([1]))
        for n, g in gradients(t, loss).items():
            expected[n] += g.square() / len(points)
    for n, value in expected.items():
        torch.testing.assert_close(found[n], value)


def test_importances_come_from_the_same_share_of_the_data_as_training(tmp_path):
    t, phase = begun("mas", tmp_path)
    t.domain.data[True] = {c: x[:3] for c, x in t.domain.data[True].items()}
    assert sum(len(b.labels) for b in t.method.pass_over(phase.keep)) == 9


def test_importances_of_a_sample_are_the_means_over_its_items(tmp_path):
    t, phase = begun("ewc", tmp_path, fisher_batch=1, importance_items=3)
    chosen = t.method.sample(("c1", "c2"))
    assert len(set(chosen)) == 3 and list(chosen) == sorted(chosen) == list(t.method.sample(("c1", "c2")))
    found = t.method.importance(("c1", "c2"))
    expected = {n: torch.zeros_like(p) for n, p in trained(t.model).items()}
    for batch in t.method.pass_over(("c1", "c2"), 1, chosen):
        for n, g in gradients(t, t.domain.predict(t.model, batch).loss).items():
            expected[n] += g.square() / 3
    for n, value in expected.items():
        torch.testing.assert_close(found[n], value)
    assert t.method.sample(("c1",)[:0]) is None  # a set that is smaller than the sample is taken whole


def test_si_path_is_the_loss_taken_away_by_plain_gradient_steps(tmp_path):
    t, phase = begun("si", tmp_path, trains="all")
    step = step_of(t, phase)
    lr, start = 1e-4, t.method.loss(step).item()
    torch.manual_seed(0)
    for _ in range(3):
        torch.manual_seed(1)
        t.model.zero_grad()
        t.method.loss(step).backward()
        t.method.before_step(step)
        with torch.no_grad():
            for p in t.model.parameters():
                p -= lr * p.grad
        t.method.after_step(step, lr)
    torch.manual_seed(1)
    taken = start_of = None
    with torch.no_grad():
        end = t.method.loss(step).item()
    torch.manual_seed(1)
    taken = sum(w.sum().item() for w in t.method.path.values())
    start_of = _loss_at_start(t, step)
    assert taken == pytest.approx(start_of - end, rel=0.05)
    assert start > 0


def _loss_at_start(t, step):
    now = copied(t.model)
    with torch.no_grad():
        for n, p in trained(t.model).items():
            p.copy_(t.method.start[n])
        value = t.method.loss(step).item()
        for n, p in trained(t.model).items():
            p.copy_(now[n])
    return value


# ---- teachers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lwf", "der", "der_pp", "fdr"])
def test_distillation_has_no_gradient_when_student_equals_teacher(method, tmp_path):
    t, phase = begun(method, tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    retained = t.method.retention(step, *predictions(t, step))
    for grad in gradients(t, retained).values():
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", ["lwf", "der", "fdr"])
def test_distillation_is_positive_once_the_student_moves(method, tmp_path):
    t, phase = begun(method, tmp_path)
    step = step_of(t, phase)
    with torch.no_grad():
        for p in trained(t.model).values():
            p.add_(0.1 * torch.randn_like(p))
    retained = t.method.retention(step, *predictions(t, step))
    assert retained.item() > 0 and any(g.abs().sum() > 0 for g in gradients(t, retained).values())


def test_lwf_distils_where_the_published_baseline_does_not(tmp_path):
    t, phase = begun("lwf", tmp_path, published_no_distillation=True)
    step = step_of(t, phase)
    assert t.method.retention(step, *predictions(t, step)) is None


def test_lwf_distils_only_old_classes_while_learning(tmp_path):
    plan = make_plan("learn", ["c4", "c5"], [], ("c0", *REST))
    t, phase = begun("lwf", tmp_path, plan)
    step = step_of(t, phase)
    before = t.method.retention(step, *predictions(t, step)).item()
    with torch.no_grad():
        t.model.head.bias[4:] += 5  # new rows say something else
    assert t.method.retention(step, *predictions(t, step)).item() == pytest.approx(before, abs=1e-6)


def test_cross_entropy_among_new_rows_leaves_old_rows_alone(tmp_path):
    plan = make_plan("learn", ["c4", "c5"], [], ("c0", *REST))
    t, phase = begun("ewc", tmp_path, plan, new_rows_only=True, rehearse=False)
    step = step_of(t, phase)
    target, _ = predictions(t, step)
    rows = t.domain.classes.rows(phase.target)
    labels = torch.tensor([rows.index(int(label)) for label in target.labels])
    expected = torch.nn.functional.cross_entropy(target.scores[:, rows], labels)
    loss = t.method.acquire(step, target)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, target.scores)
    others = [row for row in range(target.scores.shape[1]) if row not in rows]
    assert gradient[:, others].abs().max() < 1e-7 < gradient[:, rows].abs().max()


def test_cross_entropy_among_new_rows_has_no_part_of_label_smoothing(tmp_path):
    """With smoothing the old logits would get a constant upward push and the loss no lower bound."""
    plan = make_plan("learn", ["c4", "c5"], [], ("c0", *REST))
    t, phase = begun("ewc", tmp_path, plan, new_rows_only=True, rehearse=False)
    step = step_of(t, phase)
    target, _ = predictions(t, step)
    smooth = torch.nn.functional.cross_entropy(target.scores, target.labels, label_smoothing=0.1)
    loss = t.method.acquire(step, target._replace(loss=smooth))
    torch.testing.assert_close(loss, t.method.acquire(step, target))
    (gradient,) = torch.autograd.grad(loss, target.scores)
    assert gradient[:, :4].abs().max() < 1e-7


def test_cross_entropy_among_new_rows_is_refused_where_the_loss_is_another(tmp_path, monkeypatch):
    domain = pretrained(4)
    monkeypatch.setattr(domain, "plain_loss", False)
    with pytest.raises(UserError, match="--new-rows-only"):
        trainer(domain, make_plan("learn", ["c4"], [], ("c0", *REST)), "ewc", tmp_path, new_rows_only=True)


def test_lwf_distils_known_classes_and_no_row_of_a_class_to_come(tmp_path):
    plan = Plan("two", {"a": ("c4",), "b": ("c5",), "r": ("c0", *REST)}, (("learn", ("a",)), ("learn", ("b",))))
    t, phase = begun("lwf", tmp_path, plan)
    scores = torch.zeros(2, 6)
    assert old_rows(t.domain, phase, scores).tolist() == [0, 1, 2, 3]
    assert old_rows(t.domain, plan.phases[1], scores).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["lwf", "der", "der_pp", "fdr", "lirf"])
def test_published_epochs_pass_over_what_is_forgotten(method, tmp_path):
    sizes = {}
    for published in (False, True):
        t = trainer(pretrained(4), make_plan("forget", [], ["c0"], REST), method, tmp_path, published_epochs=published)
        sizes[published] = t.method.epoch_items(t.plan.phases[0])
    assert sizes == {False: 48, True: 16}


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


# ---- memory ----------------------------------------------------------------------------------------------


def test_an_ordered_pass_gives_every_item_once_over_all_ranks():
    seen = [d.index for rank in range(3) for b in Ordered(0, 4, 0, rank, 3).batches(11) for d in b]
    assert sorted(seen) == list(range(11))
    assert all(d.seed is None for b in Ordered(0, 4).batches(5) for d in b)


def test_a_chosen_stream_draws_only_chosen_items_and_each_as_often():
    batches = Chosen(1, 4, 0, 0, 1, (3, 9, 5, 20)).batches(100)
    drawn = [d.index for _ in range(6) for d in next(batches)]
    assert sorted(drawn) == sorted([3, 5, 9, 20] * 6)
    plain = Stream(1, 4).batches(4)
    assert [d.seed for d in next(plain)] == [d.seed for d in next(Chosen(1, 4, items=(3, 9, 5, 20)).batches(100))]


def test_a_memory_herds_per_class_and_keep_batches_come_from_it(tmp_path):
    t, phase = begun("der_pp", tmp_path, exemplars=3)
    names = {c: [ref.split("\n")[1] for ref in refs] for c, refs in t.method.memory.exemplars.store.items()}
    assert set(names) == set(REST)
    with torch.no_grad():
        best = herd(t.model.eval().embed(t.domain.data[True]["c2"]), 3)
    assert names["c2"] == [f"c2/{i}" for i in best]
    batches = t._batches(phase, 0)
    drawn = {n for _ in range(12) for n in next(batches)[1].names}
    assert drawn == {n for own in names.values() for n in own}


def test_forgotten_classes_leave_the_memory_and_learned_ones_enter(tmp_path):
    plan = make_plan("fltf", ["c4"], ["c0"], REST)
    t = trainer(pretrained(4), plan, "der_pp", tmp_path, exemplars=2)
    t.swap()
    assert set(t.method.memory.exemplars.store) == {"c4", *REST}
    plan = Plan("cl", {"a": ("c0",), "rest": REST}, (("forget", ("a",)),), keep_until_forgotten=True)
    t = trainer(pretrained(4), plan, "der_pp", tmp_path / "b", exemplars=2)
    t.swap()
    assert set(t.method.memory.exemplars.store) == set(REST)


# ---- every continual method ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONTINUAL)
@pytest.mark.parametrize("trains", ["adapter", "backbone", "all"])
def test_scope_decides_what_moves(method, trains, tmp_path):
    t = trainer(pretrained(4), forget_plan(), method, tmp_path, trains=trains)
    before = {n: p.detach().clone() for n, p in t.model.named_parameters()}
    t.swap()
    moved = {n for n, p in t.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    if trains == "adapter":
        assert all("lora_" in n for n in moved)
    assert any(n.startswith("head") for n in moved) == (trains == "all")


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
@pytest.mark.filterwarnings("ignore:no recorded update of forget")  # no phase of the run learned it
@pytest.mark.parametrize("method", sorted(set(methods.available()) - {"retrain"}))
def test_a_killed_run_ends_where_an_uninterrupted_one_does(method, tmp_path):
    plan = make_plan("fltf", ["c4"], ["c0"], REST)
    settings = {"steps": 4, "save_every": 0.0}
    whole = trainer(pretrained(4), plan, method, tmp_path / "whole", **settings)
    whole.swap()
    _stop_in(trainer(pretrained(4), plan, method, tmp_path / "cut", **settings), phase=2)
    again = trainer(pretrained(4), plan, method, tmp_path / "cut", **settings)
    again.swap()
    for (n, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), n


def _stop_in(t, phase: int) -> None:
    """Runs until the second step of a phase, saves as Ctrl-C would, and stops."""
    from common.errors import Interrupted

    after = t.method.after_step

    def watch(step, lr):
        after(step, lr)
        t.stop.asked = step.phase.index == phase and step.at.number == 1

    t.method.after_step = watch
    try:
        t.swap()
    except Interrupted:
        return


def test_a_teacher_is_in_eval_mode_and_frozen():
    domain = pretrained(4)
    teacher = Teacher(domain.build_model().train())
    assert not teacher.module.training and not any(p.requires_grad for p in teacher.module.parameters())
