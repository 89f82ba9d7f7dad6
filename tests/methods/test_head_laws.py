"""Laws of the methods that write head rows or compare embeddings: LUCIR, iCaRL, GS-LoRA++, LIRF."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from blobs import REST, begun, forget_plan, gradients, predictions, pretrained, step_of, trainer

from common.errors import UserError
from common.methods._head import linear_head, training_means
from common.methods._snapshots import copied, trained
from common.plan import Plan, make_plan

LEARN = make_plan("learn", ["c4", "c5"], [], ("c0", *REST))


# ---- LUCIR -----------------------------------------------------------------------------------------------


def test_imprinted_rows_have_the_old_rows_mean_norm_and_the_class_direction(tmp_path):
    t, _ = begun("lucir", tmp_path, LEARN)
    weight = t.model.head.weight
    old = weight[:4].norm(dim=1).mean()
    torch.testing.assert_close(weight[4:].norm(dim=1), old.expand(2))
    with torch.no_grad():
        mean = F.normalize(t.model.eval().embed(t.domain.data[True]["c4"]), dim=-1).mean(0)
    torch.testing.assert_close(F.normalize(weight[4], dim=0), F.normalize(mean, dim=0))


def test_less_forget_has_no_gradient_at_the_start_and_grows_with_the_turn(tmp_path):
    t, phase = begun("lucir", tmp_path, LEARN, rank_weight=0.0)
    step = step_of(t, phase)
    t.model.eval()
    target, keep = predictions(t, step)
    for grad in gradients(t, t.method.retain(step, target, keep, t.method.cosines(keep.embedding))).values():
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-5, rtol=0)
    turned = [p._replace(embedding=-p.embedding) for p in (target, keep)]
    value = t.method.retain(step, *turned, t.method.cosines(keep.embedding))
    assert value.item() == pytest.approx(2 * t.method.adaptive(phase), rel=1e-4)


def test_the_less_forget_weight_grows_with_old_per_new_class_from_the_first_increment_on(tmp_path):
    """A published implementation counts its tasks too late and has weight 0 in the first increment."""
    t, phase = begun("lucir", tmp_path, LEARN)
    assert t.method.adaptive(phase) == pytest.approx(5 * math.sqrt(4 / 2))


def test_margin_ranking_is_zero_only_when_old_items_win_by_the_margin(tmp_path):
    t, phase = begun("lucir", tmp_path, LEARN, margin=0.5, nearest=2)
    cosine = torch.tensor([[0.9, 0.0, 0.0, 0.0, 0.3, 0.4], [0.0, 0.9, 0.0, 0.0, 0.6, -1.0]])
    labels = torch.tensor([0, 1])
    # item 0: gaps 0.5 - 0.9 + 0.4 = 0 and less; item 1: 0.5 - 0.9 + 0.6 = 0.2 and less than 0
    assert t.method.ranking(phase, cosine, labels).item() == pytest.approx(0.2 / 4)
    assert t.method.ranking(phase, cosine[:1], labels[:1]).item() == pytest.approx(0, abs=1e-6)


def test_old_rows_stand_still_while_new_ones_learn(tmp_path):
    t = trainer(pretrained(4), LEARN, "lucir", tmp_path, weight_decay=0.5)
    end, seen = t.method.end_phase, {}
    begin = t.method.begin_phase
    t.method.begin_phase = lambda phase: (begin(phase), seen.update(before=t.model.head.weight.detach().clone()))
    t.method.end_phase = lambda phase: (seen.update(after=t.model.head.weight.detach().clone()), end(phase))
    t.swap()
    assert torch.equal(seen["before"][:4], seen["after"][:4])
    assert not torch.equal(seen["before"][4:], seen["after"][4:])


def test_the_plain_head_answers_as_the_cosine_classifier_after_a_phase(tmp_path):
    t = trainer(pretrained(4), LEARN, "lucir", tmp_path)
    t.swap()
    points = torch.randn(200, 6)
    t.model.eval()
    with torch.no_grad():
        assert torch.equal(t.model(points).argmax(-1), t.method.cosines(t.model.embed(points)).argmax(-1))


def test_the_scale_is_learned(tmp_path):
    t = trainer(pretrained(4), LEARN, "lucir", tmp_path)
    scales = []
    after = t.method.after_step
    t.method.after_step = lambda step, lr: (after(step, lr), scales.append(t.method.own["scale"].item()))
    t.swap()
    assert scales[0] > 0 and scales[0] != scales[-1]


# ---- iCaRL -----------------------------------------------------------------------------------------------


def test_the_overwritten_head_is_the_nearest_mean_of_exemplars(tmp_path):
    t = trainer(pretrained(4), LEARN, "icarl", tmp_path, exemplars=4)
    t.swap()
    t.model.eval()
    store = t.method.memory.exemplars.store
    points = torch.cat(list(t.domain.data[False].values()))
    with torch.no_grad():
        z = F.normalize(t.model.embed(points), dim=-1)
        means = []
        for c in t.domain.classes.names:
            own = torch.stack([t.domain.data[True][c][int(ref.rpartition("/")[2])] for ref in store[c]])
            means.append(F.normalize(F.normalize(t.model.embed(own), dim=-1).mean(0), dim=0))
        nearest = torch.cdist(z, torch.stack(means)).argmin(-1)
        assert torch.equal(t.model(points).argmax(-1), nearest)


def test_the_trained_head_returns_before_the_next_phase(tmp_path):
    plan = Plan("two", {"a": ("c4",), "b": ("c5",), "r": ("c0", *REST)}, (("learn", ("a",)), ("learn", ("b",))))
    t = trainer(pretrained(4), plan, "icarl", tmp_path)
    seen = []
    begin, end = t.method.begin_phase, t.method.end_phase
    t.method.end_phase = lambda phase: (seen.append(t.model.head.weight.detach().clone()), end(phase))
    t.method.begin_phase = lambda phase: (begin(phase), seen.append(t.model.head.weight.detach().clone()))
    t.swap()
    assert torch.equal(seen[1], seen[2])


def test_icarl_without_old_classes_is_plain_binary_cross_entropy(tmp_path):
    plan = Plan("first", {"a": ("c0", "c1")}, (("learn", ("a",)),))
    t, phase = begun("icarl", tmp_path, plan)
    target, *_ = next(t._batches(phase, 0))
    from common.methods._base import Position, Step

    t.model.eval()
    prediction = t.domain.predict(t.model, target)
    loss = t.method.loss(Step(Position(phase, 0, 1), target, None))
    wanted = F.one_hot(target.labels, 6)[:, :2].float()
    expected = F.binary_cross_entropy_with_logits(prediction.scores[:, :2], wanted, reduction="none").sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_means_without_a_bias_that_silences_the_others_are_refused(tmp_path):
    """Unknown rows would score 0 and beat every class whose cosine is negative."""
    domain = pretrained(4)
    domain.base = copy.deepcopy(domain.base)
    domain.base.head = torch.nn.Linear(domain.base.head.in_features, 6, bias=False)
    monkey = lambda model, classes: {"head.weight": domain.classes.rows(classes)}  # noqa: E731
    domain.head_rows = monkey
    with pytest.raises(UserError, match="--classifier head"):
        trainer(domain, LEARN, "icarl", tmp_path)
    trainer(domain, LEARN, "icarl", tmp_path, classifier="head")


def test_rows_of_classes_to_come_take_no_part_in_the_softmax(tmp_path):
    plan = Plan("two", {"a": ("c4",), "b": ("c5",), "r": ("c0", *REST)}, (("learn", ("a",)), ("learn", ("b",))))
    losses = []
    for shift in (0.0, 3.0):
        t, phase = begun("lucir", tmp_path / str(shift), plan)
        with torch.no_grad():
            t.model.head.weight[5] += shift  # c5, which the second phase learns
        t.model.eval()
        step = step_of(t, phase)
        target, keep = predictions(t, step)
        t.method.swap_loss(step, target, keep)
        losses.append((step.terms["target"], step.terms["keep"]))
    assert losses[0] == losses[1]


def test_a_model_with_several_class_tables_is_refused():
    domain = pretrained(4)
    model = domain.build_model()
    domain.head_rows = lambda model, classes: {"head.weight": [0], "stem.weight": [0]}
    with pytest.raises(UserError, match="2 tables of class weights"):
        linear_head(domain, model, "lucir")


# ---- GS-LoRA++ -------------------------------------------------------------------------------------------


def test_prototypes_are_class_means_of_the_pretrained_model(tmp_path):
    t, _ = begun("gs_lora_pp", tmp_path)
    base = t.domain.base.eval()
    for c in ("c0", *REST):
        with torch.no_grad():
            mean = base.embed(t.domain.data[True][c]).mean(0)
        torch.testing.assert_close(t.method.prototypes[t.domain.classes.row(c)], mean)
    assert set(t.method.prototypes) == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
def test_prototypes_stay_those_of_the_pretrained_model_unless_published(tmp_path):
    plan = Plan("two", {"a": ("c0",), "b": ("c1",), "r": ("c2", "c3")}, (("forget", ("a",)), ("forget", ("b",))))
    kept = {}
    for published in (False, True):
        t = trainer(pretrained(4), plan, "gs_lora_pp", tmp_path / str(published), published_prototypes=published)
        t.swap()
        kept[published] = t.method.prototypes[2]
    with torch.no_grad():
        mean = pretrained(4).base.embed(pretrained(4).data[True]["c2"]).mean(0)
    torch.testing.assert_close(kept[False], mean)
    assert not torch.allclose(kept[True], mean)


def test_prototypes_of_classes_that_only_a_later_phase_forgets_are_those_before_the_run(tmp_path):
    plan = make_plan("fltf", ["c4"], ["c0"], REST, keep_until_forgotten=False)
    t = trainer(pretrained(4), plan, "gs_lora_pp", tmp_path, steps=20, lr=2e-2)
    expected = training_means(t.method, ["c0"])[0]
    t.swap()
    torch.testing.assert_close(t.method.prototypes[0], expected)
    assert (training_means(t.method, ["c0"])[0] - expected).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
def test_without_prototype_weights_it_is_gs_lora(tmp_path):
    results = []
    for method, extra in (("gs_lora", {}), ("gs_lora_pp", {"prototype_forget_weight": 0.0})):
        t = trainer(pretrained(4), forget_plan(), method, tmp_path / method, **extra)
        t.swap()
        results.append(copied(t.model))
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))


def test_the_pull_is_zero_for_an_embedding_at_its_prototype(tmp_path):
    t, phase = begun("gs_lora_pp", tmp_path)
    step = step_of(t, phase)
    _, keep = predictions(t, step)
    at = keep._replace(embedding=torch.stack([t.method.prototypes[int(c)] for c in keep.labels]))
    torch.testing.assert_close(t.method._divergence(at), torch.zeros(len(keep.labels)), atol=1e-6, rtol=0)
    assert (t.method._divergence(keep) > 0).all()


def test_items_without_a_prototype_have_no_term(tmp_path):
    t, phase = begun("gs_lora_pp", tmp_path)
    step = step_of(t, phase)
    target, keep = predictions(t, step)
    t.method.prototypes = {}
    assert len(t.method._divergence(keep)) == 0
    assert torch.isfinite(t.method.swap_loss(step, target, keep))


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
def test_the_running_average_is_what_the_phase_ends_with(tmp_path):
    t = trainer(pretrained(4), forget_plan(), "gs_lora_pp", tmp_path, ema_decay=0.5, ema_from_epoch=1, epochs=3)
    per_epoch, total = t._length(t.plan.phases[0])
    ends = []
    after = t.method.after_step
    t.method.after_step = lambda step, lr: (after(step, lr), ends.append(copied(t.model)))[0]
    t.swap()
    first, second = ends[2 * per_epoch - 1], ends[3 * per_epoch - 1]
    for name, p in trained(t.model).items():
        torch.testing.assert_close(p, 0.5 * first[name] + 0.5 * second[name])
    assert total == 3 * per_epoch


def test_weights_may_differ_from_phase_to_phase(tmp_path):
    plan = Plan("two", {"a": ("c0",), "b": ("c1",), "r": ("c2", "c3")}, (("forget", ("a",)), ("forget", ("b",))))
    t = trainer(pretrained(4), plan, "gs_lora", tmp_path, forget_weights="0.1,0.7", sparsity_weight=0.0)
    for phase, weight in zip(plan.phases, (0.1, 0.7), strict=True):
        step = step_of(t, phase)
        t.model.eval()
        loss = t.method.loss(step)
        torch.testing.assert_close(loss, step.terms["keep"] + weight * step.terms["bounded"])
    with pytest.raises(UserError, match="--forget-weights"):
        t.method.config.forget_weights = "0.1"
        t.method.loss(step_of(t, plan.phases[1]))


# ---- LIRF ------------------------------------------------------------------------------------------------


def test_only_the_lower_half_moves(tmp_path):
    t = trainer(pretrained(4), forget_plan(), "lirf", tmp_path, lr=1e-3)
    before = {n: p.detach().clone() for n, p in t.model.named_parameters()}
    t.swap()
    moved = {n for n, p in t.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith(("stem", "blocks.0")) for n in moved)


def test_the_deposit_is_trained_and_shares_the_upper_half(tmp_path):
    """In the published baseline the deposit is in no optimizer."""
    t = trainer(pretrained(4), forget_plan(), "lirf", tmp_path, lr=1e-3)
    before = {n: p.detach().clone() for n, p in t.method.own.named_parameters() if n in t.method.low}
    t.swap()
    assert any(not torch.equal(p, before[n]) for n, p in t.method.own.named_parameters() if n in before)
    upper = dict(t.model.named_parameters())["blocks.1.fc1.weight"]
    assert dict(t.method.own.named_parameters())["blocks.1.fc1.weight"] is upper


def test_kept_and_forgotten_logits_are_those_of_the_classes(tmp_path):
    """The published baseline takes the first columns, whatever the class order."""
    plan = make_plan("forget", [], ["c2"], ("c0", "c1", "c3"))
    t, phase = begun("lirf", tmp_path, plan)
    assert t.method._rows(phase) == {"forgotten": [2], "kept": [0, 1, 3, 4, 5]}


def test_the_attention_push_is_zero_at_the_start(tmp_path):
    t, phase = begun("lirf", tmp_path)
    step = step_of(t, phase)
    t.model.eval()
    t.method.loss(step)
    assert step.terms["attention"].item() == pytest.approx(0, abs=1e-9)
    assert step.terms["distil"].item() == pytest.approx(0, abs=1e-5)


def test_the_attention_of_small_activations_does_not_vanish(tmp_path):
    """Entries are compared with 0.005 after the vector has length 1, so that the scale of a layer says nothing."""
    t, phase = begun("lirf", tmp_path)
    step, found = step_of(t, phase), []
    for factor in (1.0, 1e-3):
        block = t.model.get_submodule(t.method.middle)
        handle = block.register_forward_hook(lambda m, inputs, out, factor=factor: factor * out)
        found.append(t.method._with_attention(t.model.eval(), step.target)[1])
        handle.remove()
    torch.testing.assert_close(found[0], found[1])
    assert found[1].norm(dim=1).min() > 0.9


def test_training_means_read_only_the_chosen_items(tmp_path):
    t = trainer(pretrained(4), forget_plan(), "replay", tmp_path)
    found = training_means(t.method, ["c1"], items=(2, 5))
    with torch.no_grad():
        expected = t.model.eval().embed(t.domain.data[True]["c1"][[2, 5]]).mean(0)
    torch.testing.assert_close(found[1], expected)
