"""The detection domain in the loop: which objects count, forgetting, resume-proof batches, two ranks, scores."""

import socket
from unittest import mock

import pytest
import torch
from ks_detection.data.records import DetectionSet, ImageRecord
from ks_detection.domain import DetectionDomain
from ks_detection.forgetting import miss_loss
from ks_detection.models.dino.criterion import Criterion
from ks_detection.scores import Found, Truth, called
from ks_detection.view import ImageConfig
from processes import beside
from safetensors.torch import load_file
from tiny_dino import tiny_dino
from tiny_swap import GROUPS, KINDS, SMALL, base, domain, picture, pictures, run_rank, run_swap, without_noise

from common.errors import UserError
from common.frozen import FrozenConfig
from common.record import NOTHING
from common.streams import Draw, Stream


def names_and_labels(batch):
    return {
        name: (sorted(t["labels"].tolist()), len(t["ignore"]))
        for name, t in zip(batch.names, batch.targets, strict=True)
    }


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("ignore", {"p1": ([1], 1), "p2": ([1], 0), "p6": ([1], 2)}),
        ("remove", {"p1": ([1], 0), "p2": ([1], 0), "p6": ([1], 0)}),
        ("exclude", {"p2": ([1], 0)}),
    ],
)
def test_rule_for_pictures_that_show_other_groups_too(rule, expected):
    own = domain(mixed=rule)
    batch = next(iter(own.loader(("b",), train=True, stream=Stream(0, 8))))
    assert names_and_labels(batch) == expected and own.size(("b",), train=True) == len(expected)


def test_pictures_that_show_an_unwanted_class_train_nothing():
    def own(**changes):
        return DetectionDomain(base(), pictures(), {"base": ("a", "c")}, ImageConfig(**SMALL, **changes))

    left, all_of = own(without="b"), own()
    assert left.size(("a",), train=True) == 1 and all_of.size(("a",), train=True) == 3
    assert left.size(("a",), train=False) == 3, "test pictures stay"
    assert left.describe()["without"] == "b" and "without" not in all_of.describe()
    with pytest.raises(UserError, match="no training image with class 'a' but those that .--without a,b"):
        own(without="a,b")


def test_excluding_everything_is_a_clear_error():
    with pytest.raises(UserError, match="leaves no training image"):
        data = DetectionSet([picture(0, "a", "b")], [picture(0, "a", "b")], ["a", "b"])
        DetectionDomain(base(), data, {"forget": ("b",), "retain": ("a",)}, ImageConfig(mixed="exclude", **SMALL))


def test_no_pictures_of_a_class_is_a_clear_error():
    groups = GROUPS | {"learn": ("zebra",)}
    with pytest.raises(UserError, match="no training image with class 'zebra'"):
        DetectionDomain(base(), pictures(), groups, ImageConfig(**SMALL))


def test_ignored_regions_change_no_gradient_of_the_queries_inside():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, requires_grad=True)
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2]]]).repeat(2, 1, 1)
    outputs = {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": []}
    target = {"labels": torch.tensor([1]), "boxes": boxes[0, 2:], "ignore": torch.tensor([[0.7, 0.7, 0.2, 0.2]])}
    criterion = Criterion(tiny_dino().config)
    criterion(outputs, [target, {k: v for k, v in target.items() if k != "ignore"}])["loss_ce"].backward()
    assert logits.grad[0, 1].abs().sum() == 0 and (logits.grad[0, [0, 2]].abs().sum(-1) > 0).all()
    assert logits.grad[1, 1].abs().sum() > 0


def test_batches_are_a_function_of_the_stream_alone():
    own = domain(augment=True, sizes="56-72:8", before_crop="64,72", crop="48,64")
    first, second = (iter(own.loader(("a", "c"), train=True, stream=Stream(4, 3))) for _ in range(2))
    resumed = iter(own.loader(("a", "c"), train=True, stream=Stream(4, 3, start=2)))
    batches = [next(first) for _ in range(3)]
    assert names_and_labels(batches[0]) == names_and_labels(next(second))
    again = next(resumed)
    assert batches[2].names == again.names
    for a, b in zip(batches[2].images, again.images, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_worker_processes_change_no_batch():
    view = {"augment": True, "sizes": "56-72:8", "before_crop": "64,72", "crop": "48,64"}
    here, there = (
        next(iter(domain(workers=workers, **view).loader(("a", "c"), train=True, stream=Stream(4, 3))))
        for workers in (0, 2)
    )
    assert names_and_labels(here) == names_and_labels(there) and here.sizes == there.sizes
    assert all(map(torch.equal, here.images, there.images)) and here.indices == there.indices


def test_ranks_share_the_pictures_of_a_global_batch():
    own = domain()
    whole = next(iter(own.loader(("a", "c"), train=True, stream=Stream(1, 4))))
    parts = [next(iter(own.loader(("a", "c"), train=True, stream=Stream(1, 2, 0, rank, 2)))) for rank in range(2)]
    assert whole.names == parts[0].names + parts[1].names


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_rows_are_the_annotated_objects_in_their_order(kind):
    """So that the rows of a teacher and of its student are of the same objects."""
    own = domain(base(kind))
    model = own.build_model().train()
    assert model.config.num_classes == 4 and own.classes.names == ("a", "b", "c", "new")
    batch = next(iter(own.loader(("new", "a"), train=True, stream=Stream(0, 5))))
    found = own.predict(model, batch)
    count = sum(len(target["labels"]) for target in batch.targets)
    assert found.scores.shape == (count, 4) and found.embedding.shape == (count, 32)
    assert found.labels.tolist() == torch.cat([t["labels"] for t in batch.targets]).tolist()
    assert found.item_loss.shape == (count,) and (found.item_loss > 0).all()


def test_head_rows_are_rows_of_the_three_places_that_know_classes():
    own = domain()
    model = own.build_model()
    rows = own.head_rows(model, ("new",))
    parameters = dict(model.named_parameters())
    assert len(rows) == 5 and all(indices == [3] and parameters[name].shape[0] > 3 for name, indices in rows.items())


def test_miss_loss_falls_when_any_query_on_the_object_names_it():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.22, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    targets = [{"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    one = torch.tensor([0])

    def loss(query: int, value: float) -> float:
        logits = torch.full((1, 3, 4), -6.0)
        logits[0, query, 2] = value
        outputs = {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": []}
        from ks_detection.models.parts.matcher import Matches

        return miss_loss(outputs, targets, Matches(one, one, one)).item()

    assert loss(0, 3.0) == pytest.approx(loss(1, 3.0)) and loss(0, 3.0) < 0.1
    assert loss(2, 3.0) > 5  # a query elsewhere does not see it


def test_head_rows_of_a_refining_model_are_those_of_every_layer_that_is_trained():
    for changes, heads in (({}, [0, 1, 2]), ({"aux_loss": False}, [2]), ({"two_stage": True}, [0, 1, 2])):
        own = domain(base("deformable", with_box_refine=True, **changes))
        rows = own.head_rows(own.build_model(), ("new",))
        assert rows == {f"class_embed.{i}.{part}": [3] for i in heads for part in ("weight", "bias")}


@pytest.mark.parametrize(("kind", "order"), [("dino", "fltf"), ("dino", "fftl"), ("deformable", "fltf")])
def test_a_whole_swap_writes_scores_and_changes_only_adapters_and_new_rows(tmp_path, order, kind):
    trainer, metrics = run_swap(tmp_path, order, model=base(kind))
    start = base(kind)
    scores = [line for line in metrics if "score" in line]
    assert len(scores) == 3 * 3 and all(0 <= line["score"] <= 100 for line in scores)
    assert set(scores[0]["per_class"]) == set(GROUPS[scores[0]["group"]])
    state, before = trainer.model.state_dict(), start.state_dict()
    for name, value in before.items():
        now = state[name][: value.shape[0] - (name == "label_enc.weight")]
        torch.testing.assert_close(now, value[: len(now)], rtol=0, atol=0, msg=name)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and (tmp_path / "gallery.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_maps_give_the_same_loss_and_spare_the_backbone(tmp_path, kind, monkeypatch):
    frozen = FrozenConfig(feature_cache=str(tmp_path))
    plain, kept = domain(base(kind), eval_batch=1), domain(base(kind), eval_batch=1, frozen=frozen)
    model = plain.build_model().eval().requires_grad_(False)
    kept.freeze(model)
    losses = []
    for own in (plain, kept, kept):
        batch = next(iter(own.loader(("a",), train=False)))
        losses.append(own.predict(model, batch).loss.item())
        if own is kept:
            monkeypatch.setattr(type(model.backbone), "forward", None)  # later passes must come from disk
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert (kept.frozen.computed, kept.frozen.read) == (1, 1)


def test_maps_are_kept_where_that_changes_nothing(tmp_path):
    """Not where the backbone trains; of unequal images, and of augmented views, with --fast only."""
    for fast in (False, True):
        frozen = FrozenConfig(fast=fast, feature_cache=str(tmp_path / str(fast)))
        own = domain(base(), augment=True, frozen=frozen)
        model = own.build_model().eval().requires_grad_(False)
        own.freeze(model)
        draws = [Draw(i, 7 + i) for i in range(2)]
        batch = own._batch(draws, frozenset("ab"), train=True)
        assert [key is not None for key in batch.keys] == [fast] * 2
        own.forward(model, batch)
        unequal = batch._replace(images=[batch.images[0], batch.images[1][:, 8:]], keys=[b"0" * 16, b"1" * 16])
        unequal = unequal._replace(sizes=[tuple(image.shape[-2:]) for image in unequal.images])
        count = own.frozen.computed
        own.forward(model, unequal)
        assert own.frozen.computed - count == (2 if fast else 0)
        again = own._batch([Draw(0, 7), Draw(0, 9)], frozenset("ab"), train=True)
        assert (again.keys[0] == again.keys[1] == batch.keys[0]) or not fast, "two views of each picture"
        own.freeze(trained := own.build_model())
        assert trained.frozen_stages == 0


@pytest.fixture(scope="module")
def swaps(tmp_path_factory):
    """Folder with the swaps of one process (one/KIND) and of two with half the batch each (two/KIND)."""
    folder = tmp_path_factory.mktemp("swaps")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_rank(0, 1, 0, str(folder / "one"), 2)
    with beside(run_rank, 2, port, str(folder / "two"), 1, 1), mock.patch.dict("os.environ"):
        run_rank(0, 2, port, str(folder / "two"), 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), [("dino", "class_embed"), ("deformable", "class_embed.0")])
def test_two_ranks_equal_one_process_with_the_doubled_batch(swaps, kind, head):
    one, two = (load_file(swaps / name / kind / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    fresh = without_noise(kind).get_submodule(head).weight
    moved = one[f"base_model.model.{head}.weight"]
    assert set(one) == set(two) and (moved[:3] == fresh).all() and moved.shape[0] == 4
    assert any(value.abs().sum() > 0 for name, value in one.items() if "lora_B" in name)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-5, msg=name)


def test_forget_phase_may_reverse_the_class_part_alone():
    from common.losses import bounded_forgetting

    own = domain(forget_part="class")
    model = own.build_model().train()
    found = own.predict(model, next(iter(own.loader(("b",), train=True, stream=Stream(0, 2)))))
    boxes = found.loss - found.reversible
    assert 0 < found.reversible < found.loss
    expected = (15 - found.reversible).relu() + boxes  # L_f = relu(BND - L_cls) + L_box + L_giou
    torch.testing.assert_close(bounded_forgetting(found, 15.0, per_item=False), expected)
    whole = found._replace(reversible=None)
    torch.testing.assert_close(bounded_forgetting(whole, 15.0, per_item=False), (15 - found.loss).relu())


def test_groups_scored_together_have_the_scores_of_each_alone():
    own = domain(eval_batch=1)
    model = own.build_model().eval()
    with torch.inference_mode():
        together = own.evaluate_groups(model, GROUPS)
        alone = {group: own.scores(model, classes).evaluation() for group, classes in GROUPS.items()}
    assert list(together) == list(GROUPS)
    for group, classes in GROUPS.items():
        assert together[group].scores == pytest.approx(alone[group].scores)
        assert together[group].figures["AP50"] == pytest.approx(alone[group].figures["AP50"])
        assert set(together[group].curves) == set(classes) and len(together[group].curves[classes[0]]) == 101


def test_a_sample_is_the_same_few_pictures_of_each_group(monkeypatch):
    own, seen = domain(), []
    forward, model = own.forward, own.build_model().eval()
    monkeypatch.setattr(own, "forward", lambda model, batch: seen.extend(batch.names) or forward(model, batch))
    with torch.inference_mode():
        own.evaluate_groups(model, GROUPS, 1)
        first, seen[:] = list(seen), []
        own.evaluate_groups(model, GROUPS, 1)
    assert seen == first and 1 <= len(first) <= len(GROUPS) and len(set(first)) == len(first)


def test_an_object_is_called_by_the_surest_detection_that_covers_it():
    truth = Truth("p", 100, 100, [("a", (0, 0, 10, 10), False), ("a", (50, 50, 60, 60), False), ("b", (20, 0, 30, 10), False),
                                  ("b", (0, 20, 10, 30), True), ("c", (80, 80, 90, 90), False)])  # fmt: skip
    boxes = [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 54], [50, 50, 60, 60]]
    found = Found([0.9, 0.8, 0.7, 0.6, 0.1], ["b", "a", "b", "a", "a"], boxes)
    assert called([truth], [found], ["a", "b"], 0.3) == {"a": {"b": 0.5, NOTHING: 0.5}, "b": {"b": 1.0}}
    assert called([truth], [found], ["a"], 0.05) == {"a": {"b": 0.5, "a": 0.5}}
    assert called([truth], [Found([], [], [])], ["c"], 0.3) == {"c": {NOTHING: 1.0}}


def test_each_test_picture_is_looked_at_once_for_all_groups(monkeypatch):
    own, seen = domain(), []
    forward = own.forward
    monkeypatch.setattr(own, "forward", lambda model, batch: seen.extend(batch.names) or forward(model, batch))
    with torch.inference_mode():
        own.evaluate_groups(own.build_model().eval(), GROUPS)
    assert sorted(seen) == sorted(p.name for p in pictures().test)


def test_pictures_of_one_name_in_two_folders_are_cached_apart(tmp_path):
    model = base()
    rows = []
    for number in range(2):
        image = picture(40 * number, "a").image
        (tmp_path / str(number)).mkdir()
        image.save(tmp_path / str(number) / "same.png")
        rows.append(
            ImageRecord("same.png", tmp_path / str(number) / "same.png", *image.size, picture(0, "a").annotations)
        )
    data = DetectionSet(rows, rows, ["a"])
    frozen = FrozenConfig(feature_cache=str(tmp_path / "maps"))
    own = DetectionDomain(model, data, {"retain": ("a",)}, ImageConfig(**SMALL), frozen=frozen)
    first, second = (own.item(Draw(i, None), frozenset("a"), True)[-1] for i in range(2))
    assert first != second


@pytest.mark.parametrize("read", ["loss", "items"])
def test_losses_that_are_not_read_change_nothing_else(read):
    """In training mode, in which denoising queries join the others only for the loss."""
    own = domain()
    model = own.build_model().train()
    batch = next(iter(own.loader(("b",), train=True, stream=Stream(0, 8))))

    def predicted(read):
        torch.manual_seed(0)
        return own.predict_together(model, [batch], [read])[0]

    whole, part = predicted("both"), predicted(read)
    assert torch.equal(part.labels, whole.labels)
    for name in ("scores", "embedding"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    if read == "loss":
        assert part.item_loss is None and torch.equal(part.loss, whole.loss)
    else:
        torch.testing.assert_close(part.item_loss, whole.item_loss, rtol=1e-4, atol=1e-5)
        assert torch.equal(part.loss, part.item_loss.mean())
        slopes = [torch.autograd.grad(p.item_loss.sum(), model.class_embed.weight)[0] for p in (part, whole)]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
