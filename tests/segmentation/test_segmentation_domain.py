"""The segmentation domain through the loop: groups, rows, scores, ranks, and the scripts."""

import copy

import numpy as np
import pytest
import torch
from ks_segmentation.data.digits import digit_scenes
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.data.sets import MaskItem, MaskSet
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from ks_segmentation.forgetting import miss_loss
from ks_segmentation.models.parts.criterion import Criterion
from ks_segmentation.models.parts.inference import class_scores
from ks_segmentation.models.parts.targets import UNKNOWN, segments
from processes import beside
from tiny_mask2former import RESNET, SWIN, model
from toy import make_trainer

from common import adapters, lora
from common.errors import UserError
from common.plan import make_plan
from common.streams import Stream

SMALL = [
    "INPUT.CROP.SIZE",
    [64, 64],
    "INPUT.MIN_SIZE_TRAIN",
    [64],
    "INPUT.MIN_SIZE_TEST",
    64,
    "INPUT.COLOR_AUG_SSD",
    False,
]
GROUPS = {"learn": ("e", "f"), "forget": ("a",), "retain": ("b", "c", "d")}
KNOWN = ("a", "b", "c", "d", "unused")


def scene(number, names=8):
    """64x64, left half class number % 6, right half the next one."""
    ids = np.full((64, 64), number % 6, np.int16)
    ids[:, 32:] = (number + 1) % 6
    ids[:4] = IGNORE
    picture = np.repeat((ids * 30 + number).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    return MaskItem(f"s{number}", picture, ids)


def domain(base=None, groups=GROUPS, **config):
    data = MaskSet(tuple("abcdef"), [scene(i) for i in range(12)], [scene(i) for i in range(6)])
    base = base or model(RESNET, *SMALL)
    return SegmentationDomain(base, KNOWN, [data], groups, MaskConfig(cache_dir="", **config))


def test_new_classes_get_rows_behind_the_old_and_no_object_stays_last():
    d = domain()
    grown = d.build_model()
    assert d.classes.names == (*KNOWN, "e", "f") and grown.num_classes == 7
    old, new = d.base.network.class_predictor, grown.network.class_predictor
    assert torch.equal(new.weight[:5], old.weight[:5]) and torch.equal(new.weight[-1], old.weight[-1])
    assert d.head_rows(grown, ("e", "f"))["network.class_predictor.weight"] == [5, 6]


@pytest.mark.parametrize(("backbone", "count"), [(SWIN, 2 * (5 + 2 + 3)), (RESNET, 2 * (2 + 3))])
def test_adapters_go_on_every_ffn(backbone, count):
    m = model(backbone, *SMALL)
    targets = domain(m).lora_targets(m)
    assert len(targets["ffn"]) == count and not set(targets["ffn"]) & set(targets["attention"])
    lora.inject(m, targets["ffn"], 2)
    lora.inject(m, targets["attention"], 2)


def test_adapter_groups_are_the_blocks():
    from common.sparsity import groups

    m = model(SWIN, *SMALL)
    lora.inject(m, domain(m).lora_targets(m)["ffn"], 2)
    found = groups(m)
    assert len(found) == 5 + 2 + 3 and {len(g) for g in found.values()} == {4}


@pytest.mark.parametrize(("others", "expected"), [("unknown", UNKNOWN), ("background", IGNORE)])
def test_pixels_of_other_groups_follow_the_stated_rule(others, expected):
    d = domain(others=others)
    known = d.train_items[1]  # classes b and c
    labels = d.labels_of(known, ("b",), UNKNOWN if others == "unknown" else IGNORE)
    assert set(np.unique(labels)) == {1, expected, IGNORE} and (labels[:4] == IGNORE).all()


def test_drop_leaves_out_pictures_with_other_groups():
    d = domain(others="drop")
    assert d.size(("b", "c", "d"), train=True) == 4 and d.size(("b", "c", "d"), train=False) == 4
    with pytest.raises(UserError, match="no image is left"):
        d.size(("a",), train=True)


def test_pictures_with_a_pixel_of_an_unwanted_class_train_nothing():
    d, every = (domain(groups={"base": ("a", "b", "e")}, without=text) for text in ("d", ""))
    assert [len(one.train_items) for one in (d, every)] == [8, 10]
    assert len(d.test_items) == len(every.test_items), "test pictures stay"
    assert "s2" not in [known.item.name for known in d.train_items], "its right half is d"
    assert d.describe()["without"] == "d" and "without" not in every.describe()


def test_the_same_draw_gives_the_same_batch_in_this_process_or_another():
    a, b = (next(iter(domain(workers=n).loader(("b", "c"), train=True, stream=Stream(3, 4)))) for n in (0, 1))
    assert (
        a.names == b.names
        and torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and a.images.shape == (4, 3, 64, 64)
    )


def test_prediction_rows_are_the_annotated_segments():
    d = domain()
    m = d.build_model()
    batches = list(d.loader(("b", "c", "d"), train=False))[:2]
    one, two = d.predict_together(m, batches)
    assert one.labels.tolist() == sorted(set(batches[0].labels.unique().tolist()) - {IGNORE})
    assert one.scores.shape == (len(one.labels), 7) and one.embedding.shape == (len(one.labels), 32)
    assert one.item_loss.shape == one.labels.shape and one.loss.requires_grad


def test_a_segment_is_missed_by_minus_log_of_its_classs_share():
    """Over the pixels of the segment, of all queries; whatever else the picture holds does not count."""
    torch.manual_seed(0)
    logits, masks = torch.randn(5, 4), torch.randn(5, 8, 8)
    label = torch.randint(0, 3, (1, 8, 8))
    found = segments(label, IGNORE, 3)[0]
    shares = class_scores(logits, masks) / class_scores(logits, masks).sum(0)
    expected = [-shares[k][label[0] == k].mean().log() for k in found.classes]
    torch.testing.assert_close(miss_loss(class_scores(logits, masks)[None], [found]), torch.stack(expected))
    fine = segments(label.repeat_interleave(4, 1).repeat_interleave(4, 2), IGNORE, 3)[0]  # the picture's own size
    torch.testing.assert_close(miss_loss(class_scores(logits, masks)[None], [fine]), torch.stack(expected))
    one = fine._replace(classes=fine.classes[:1], masks=fine.masks[:1])
    torch.testing.assert_close(miss_loss(class_scores(logits, masks)[None], [one])[0], expected[0])
    assert miss_loss(class_scores(logits, masks - 1e9)[None], [found]).isfinite().all()
    assert miss_loss(class_scores(logits, masks)[None], segments(label * 0 + IGNORE, IGNORE, 3)).shape == (0,)


def test_a_model_that_is_sure_of_nothing_has_not_forgotten():
    """The largest score is the answer however small it is: the loss must not call that a miss."""
    logits, masks = torch.tensor([[5.0, 0, 0, 0]]), torch.zeros(1, 8, 8)
    found = segments(torch.zeros(1, 8, 8, dtype=torch.long), IGNORE, 3)[0]
    sure = miss_loss(class_scores(logits, masks)[None], [found])
    torch.testing.assert_close(
        miss_loss(class_scores(logits, masks - 20)[None], [found]), sure
    )  # no query covers the place any more
    unsure = logits + torch.tensor([0, 0, 0, 20.0])  # the only query says "no object"
    torch.testing.assert_close(miss_loss(class_scores(unsure, masks)[None], [found]), sure, rtol=1e-3, atol=1e-3)
    assert miss_loss(class_scores(logits.roll(1), masks)[None], [found]) > 4 > 1 > sure  # another class answers


def test_joined_batches_are_predicted_as_alone(monkeypatch):
    line = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: line[: shape[-2]].expand(shape).clone())
    d = domain(eval_batch=2)
    m = d.build_model().eval()
    batches = list(d.loader(("b", "c", "d"), train=False))[:2]
    for joined, alone in zip(d.predict_together(m, batches), [d.predict(m, b) for b in batches], strict=True):
        torch.testing.assert_close(joined.loss, alone.loss, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joined.scores, alone.scores, rtol=1e-3, atol=1e-4)


def test_scores_count_only_the_group():
    d = domain()
    m = d.build_model()
    m.segment = lambda images, sizes: [torch.ones(size, dtype=torch.long) for size in sizes]  # "b" everywhere
    scores = d.evaluate(m, ("b", "c"))
    assert scores["b"] == pytest.approx(100 * 1 / 2) and scores["c"] == 0 and scores["total"] == pytest.approx(25)


def test_groups_in_one_pass_score_as_each_alone():
    """Each picture is looked at once for all groups; the figures beside mIoU are the counts' own."""
    d = domain(eval_batch=3)
    m, seen = d.build_model(), []
    cycle = [torch.arange(64 * 64).reshape(64, 64) % k for k in (3, 5, 7)]
    m.segment = lambda images, sizes: seen.append(len(sizes)) or [cycle[int(i.sum() * 1e3) % 3] for i in images]
    together = d.evaluate_groups(m, GROUPS)
    assert sum(seen) == len(d.test_items)
    for group, classes in GROUPS.items():
        scores, figures, _, answers = together[group]
        assert scores == d.evaluate(m, classes) and set(scores) == {"total", *classes}
        counts = d.confusions(m, {group: classes})[group].matrix.double()
        truth = counts.sum(0)
        for name in classes:
            own = counts[:, d.classes.row(name)] / truth[d.classes.row(name)]
            assert answers[name] == pytest.approx(
                {d.classes.names[i]: float(x) for i, x in enumerate(own) if x > 0.005}, abs=1e-4
            )
        assert figures["pACC"]["total"] == pytest.approx(100 * float(counts.trace() / truth.sum()))
        shares = {c: float(truth[d.classes.row(c)] / truth.sum()) for c in classes}
        assert figures["fwIoU"]["total"] == pytest.approx(sum(shares[c] * scores[c] for c in classes))
        assert figures["ACC"]["total"] == pytest.approx(np.mean([figures["ACC"][c] for c in classes]))


def test_a_sample_is_the_same_few_pictures_of_each_group():
    d = domain()
    m, seen = d.build_model(), []
    m.segment = lambda images, sizes: seen.append(len(sizes)) or [torch.ones(size, dtype=torch.long) for size in sizes]
    first, again = (repr(d.evaluate_groups(m, GROUPS, 1)) for _ in range(2))  # NaN is no number to compare
    assert first == again and sum(seen) <= 2 * len(GROUPS)
    assert repr(d.evaluate_groups(m, GROUPS, 10**6)) == repr(d.evaluate_groups(m, GROUPS))


def test_a_query_on_untold_pixels_is_not_blamed():
    labels = torch.full((1, 32, 32), UNKNOWN)
    labels[:, :8] = 2
    m = model(RESNET, *SMALL)
    criterion, untold, told = Criterion(m.config), segments(labels, 255, 5), segments(labels.clamp(min=0), 255, 5)
    assert untold[0].classes.tolist() == [2] and told[0].unknown is None
    embeddings, features = torch.randn(1, 12, 32), torch.randn(32, 8, 8)
    features[:, :2] *= 0
    features[0] = 1
    embeddings[:, 3], embeddings[:, 3, 0] = 0, 5  # query 3 covers everything, so mostly what is not told
    (matched,) = criterion.match(torch.zeros(1, 1, 12, 6), embeddings[None], features[None, None], untold)
    assert matched.excused[0, 3]
    logits = torch.randn(1, 1, 12, 6, requires_grad=True)
    loss = criterion.class_loss(logits, untold, [matched._replace(query=torch.zeros(1, 1, dtype=torch.long))])
    loss.sum().backward()
    assert logits.grad[0, 0, 3].abs().sum() == 0 and logits.grad[0, 0, 0].abs().sum() > 0


def swap(tmp_path, order="fltf", method="gs_lora", steps=2, world=None, **flags):
    d = domain(eval_batch=6)
    plan = make_plan(order, *(GROUPS[g] for g in ("learn", "forget", "retain")))
    trainer = make_trainer(d, plan, method, tmp_path / order, steps=steps, batch_size=2, lr=1e-3, **flags)
    return trainer, trainer.swap()


@pytest.mark.parametrize("order", ["fltf", "lfl"])
def test_a_swap_touches_adapters_and_new_rows_alone(order, tmp_path):
    trainer, metrics = swap(tmp_path, order)
    assert {line["group"] for line in metrics if "group" in line} == set(GROUPS)
    untouched, grown = trainer.domain.build_model().state_dict(), trainer.model.state_dict()
    for name, value in untouched.items():
        if "class_predictor" in name:
            same = [i for i in range(len(value)) if i not in (5, 6)]
            assert torch.equal(grown[name][same], value[same]) and not torch.equal(grown[name], value)
        else:
            assert torch.equal(grown[name], value)
    again = trainer.domain.build_model().eval()
    adapters.load(again, trainer.run.path("adapter"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(images)["pred_logits"], trainer.model.eval()(images)["pred_logits"])


@pytest.mark.slow
def test_two_ranks_equal_one_process_with_the_doubled_batch(tmp_path):
    """Both ranks compute their half of a batch with the other's counts; their mean gradient is the whole batch's."""
    from segmentation_ranks import gradients, worker

    with beside(worker, 2, str(tmp_path), 1):
        worker(0, 2, str(tmp_path))
    both, whole = torch.load(tmp_path / "gradients.pt"), gradients(0, 1)
    assert set(both) == set(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(both[name], torch.from_numpy(gradient), rtol=1e-3, atol=1e-5, msg=name)


def test_gallery_shows_the_same_pictures_before_and_after():
    d = domain()
    m = d.build_model().eval()
    first, second = (d.gallery(m, ("b", "c"), 2) for _ in range(2))
    assert [i.name for i in first] == [i.name for i in second] and first[0].picture[:4] == b"\x89PNG"
    assert "b" in first[0].truth


def test_digit_scenes_fill_the_protocol():
    base = model(RESNET, *SMALL, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9)
    data = digit_scenes(60, 80)
    groups = {"learn": ("8", "9"), "forget": ("0", "1"), "retain": ("ground", "2", "3", "4", "5", "6", "7")}
    d = SegmentationDomain(base, data.classes[:9], [data], groups, MaskConfig(cache_dir="", eval_batch=40))
    scores = d.evaluate(copy.deepcopy(d.build_model()).eval(), groups["retain"])
    assert 0 <= scores["total"] <= 100 and set(scores) == {"total", *groups["retain"]}


def test_a_class_in_no_mask_is_named():
    with pytest.raises(UserError, match="no mask can hold class 'zebra'"):
        domain(groups={**GROUPS, "learn": ("zebra",)})


def test_segments_of_several_pictures_are_missed_as_those_of_one():
    torch.manual_seed(0)
    scores, labels = torch.rand(3, 4, 8, 8), torch.randint(0, 4, (3, 8, 8))
    labels[1] = IGNORE  # a picture without a segment
    found = segments(labels, IGNORE, 4)
    alone = [miss_loss(own[None], [one]) for own, one in zip(scores, found, strict=True)]
    torch.testing.assert_close(miss_loss(scores, found), torch.cat(alone))


@pytest.mark.parametrize("read", ["loss", "items"])
def test_losses_that_are_not_read_change_nothing_else(read):
    d = domain()
    m = d.build_model()
    batches = list(d.loader(("b", "c", "d"), train=False))[:2]

    def predicted(*read):
        torch.manual_seed(0)
        return d.predict_together(m, batches, read)

    whole, part = predicted("both", "both")[1], predicted("both", read)[1]
    assert torch.equal(part.labels, whole.labels) and torch.equal(part.scores, whole.scores)
    assert torch.equal(part.embedding, whole.embedding)
    if read == "loss":
        assert part.item_loss is None and torch.equal(part.loss, whole.loss)
    else:
        assert torch.equal(part.item_loss, whole.item_loss) and torch.equal(part.loss, whole.item_loss.mean())
