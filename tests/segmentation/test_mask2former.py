"""Our Mask2Former against transformers' own forward and loss, and its semantic inference against a direct one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from ks_segmentation.models.mask2former.architecture import network
from ks_segmentation.models.parts import criterion as criterion_module
from ks_segmentation.models.parts import inference, points
from ks_segmentation.models.parts.criterion import Criterion
from ks_segmentation.models.parts.targets import segments
from tiny_mask2former import RESNET, SWIN, config, model

from common.errors import UserError
from common.lora import adapters, inject

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def transformers_own(ours):
    """transformers' model, forward and loss with the same weights."""
    from transformers import Mask2FormerForUniversalSegmentation

    theirs = copy.deepcopy(ours.network)
    fresh = Mask2FormerForUniversalSegmentation(theirs.config)
    theirs.criterion = fresh.criterion
    theirs.criterion.num_points = theirs.criterion.matcher.num_points = ours.config.MODEL.MASK_FORMER.TRAIN_NUM_POINTS
    return theirs


@pytest.fixture
def same_points(monkeypatch):
    """Every draw of n points gives the same n points, here and in transformers."""
    line = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: line[: shape[-2]].expand(shape).clone())
    assert torch.equal(points.random_points(3, 5, device="cpu")[0], line[:5])


@pytest.mark.parametrize("backbone", [SWIN, RESNET], ids=["swin", "resnet"])
def test_forward_equals_transformers(backbone):
    ours = model(backbone)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        a = ours(images)
        b = transformers_own(ours)(pixel_values=images, output_auxiliary_logits=True)
    torch.testing.assert_close(a["pred_logits"], b.class_queries_logits, **CLOSE)
    torch.testing.assert_close(a["pred_masks"], b.masks_queries_logits, **CLOSE)
    for i, aux in enumerate(b.auxiliary_logits):
        torch.testing.assert_close(a["logits"][i], aux["class_queries_logits"], **CLOSE)


def labels_and_lists():
    labels = torch.randint(0, 3, (2, 8, 8)).repeat_interleave(12, 1).repeat_interleave(8, 2)
    labels[1][labels[1] == 2] = 255
    found = segments(labels, 255, 5)
    return labels, [f.masks.float() for f in found], [f.classes for f in found]


def test_loss_and_gradients_equal_transformers(same_points):
    ours = model()
    theirs = transformers_own(ours)
    images = torch.randn(2, 3, 96, 64)
    labels, masks, classes = labels_and_lists()
    a = Criterion(ours.config)(ours(images), labels)
    a.total.backward()
    b = theirs(pixel_values=images, mask_labels=masks, class_labels=classes)
    b.loss.backward()
    torch.testing.assert_close(a.total, b.loss.squeeze(), **CLOSE)
    other = dict(theirs.named_parameters())
    for name, parameter in ours.network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 32, 9, 11), (1, 7, 9, 11), (3, 16, 5, 4), (1, 0, 5, 4)])
def test_values_at_points_are_grid_samples_whatever_the_number_of_channels(shape):
    torch.manual_seed(0)
    maps, places = torch.randn(shape).requires_grad_(), torch.rand(shape[0], 20, 2)
    grid = places[:, None] * 2 - 1
    wanted = F.grid_sample(maps, grid, align_corners=False)[:, :, 0]
    found = points.sample(maps, places)
    torch.testing.assert_close(found, wanted)
    toward = torch.randn_like(wanted)
    torch.testing.assert_close(*(torch.autograd.grad(values, maps, toward)[0] for values in (found, wanted)))


def test_terms_sum_to_the_total(same_points):
    ours = model()
    labels, _, classes = labels_and_lists()
    loss = Criterion(ours.config)(ours(torch.randn(2, 3, 96, 64)), labels)
    weighted = 2 * loss.terms["ce"].sum() + 5 * loss.terms["mask"].sum() + 5 * loss.terms["dice"].sum()
    torch.testing.assert_close(loss.total, weighted)
    assert loss.terms["ce"].shape == (4,) and [len(t.classes) for t in loss.targets] == [len(c) for c in classes]


def test_more_segments_than_queries_are_matched_as_far_as_they_go(same_points):
    ours = model(SWIN, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 2)
    theirs = transformers_own(ours)
    images = torch.randn(2, 3, 96, 64)
    labels, masks, classes = labels_and_lists()
    loss = Criterion(ours.config)(ours(images), labels)
    own = theirs(pixel_values=images, mask_labels=masks, class_labels=classes)
    torch.testing.assert_close(loss.total, own.loss.squeeze(), **CLOSE)


def test_a_picture_without_any_class_costs_only_no_object():
    ours = model()
    loss = Criterion(ours.config)(ours(torch.randn(1, 3, 64, 64)), torch.full((1, 64, 64), 255))
    loss.total.backward()
    assert loss.terms["mask"].sum() == 0 and loss.terms["ce"].sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)


def test_an_id_outside_the_list_is_named():
    with pytest.raises(UserError, match="id 7.*0-4 and 255"):
        segments(torch.full((1, 4, 4), 7), 255, 5)


def test_training_mode_gives_scores_and_embeddings():
    outputs = model().train()(torch.randn(1, 3, 64, 64))
    assert outputs["pred_logits"].shape == (1, 12, 6) and outputs["embedding"].shape == (1, 12, 32)
    assert outputs["pred_masks"].requires_grad and outputs["logits"].shape == (4, 1, 12, 6)


@pytest.mark.parametrize("name", ["ffn", "cross_attn"])
def test_a_fresh_adapter_changes_no_answer(name):
    ours = model()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = ours(images)["pred_masks"]
        layers = ours.network.model.transformer_module.decoder.layers
        inject(ours.network.model.transformer_module, [
            f"decoder.layers.{i}.{leaf}" for i in range(len(layers)) for leaf in (["fc1", "fc2"] if name == "ffn" else [name])
        ], rank=2)  # fmt: skip
        assert len(adapters(ours)) >= 3
        torch.testing.assert_close(ours(images)["pred_masks"], before, rtol=1e-5, atol=1e-5)


def direct(ours, image, size):
    """Semantic inference written out: scores at the padded size, then the picture's part, then its size."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % 32, 0, -height % 32))[None]
    out = ours(padded)
    masks = F.interpolate(out["pred_masks"], size=padded.shape[-2:], mode="bilinear")[0].sigmoid()
    scores = torch.einsum("qk,qhw->khw", out["pred_logits"][0].softmax(-1)[:, :-1], masks)[:, :height, :width]
    return F.interpolate(scores[None], size=size, mode="bilinear")[0].argmax(0)


@torch.no_grad()
def test_segment_crops_the_padding_and_resizes():
    ours = model()
    image = torch.randn(3, 50, 70)
    (answer,) = ours.segment(image[None], [(90, 111)])
    assert answer.shape == (90, 111) and answer.dtype == torch.int64
    assert (answer == direct(ours, image, (90, 111))).float().mean() > 0.999


@torch.no_grad()
def test_pictures_of_different_sizes_are_answered_as_if_alone():
    ours = model()
    images = [torch.randn(3, 64, 96), torch.randn(3, 64, 96)]
    together = ours.segment(images, [(64, 96), (30, 40)])
    for image, size, answer in zip(images, [(64, 96), (30, 40)], together, strict=True):
        assert torch.equal(answer, ours.segment(image[None], [size])[0])


@torch.no_grad()
def test_flip_and_scales_average_to_the_plain_answer_for_one_plain_view():
    ours = model(SWIN, "TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", False, "TEST.AUG.MIN_SIZES", [64])
    plain = model()
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(ours.segment(image, [(64, 96)])[0], plain.segment(image, [(64, 96)])[0])
    flipping = model(SWIN, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", [64])
    mirrored = flipping.segment(image.flip(-1), [(64, 96)])[0].flip(-1)
    assert (mirrored == flipping.segment(image, [(64, 96)])[0]).float().mean() > 0.999


@torch.no_grad()
def test_sliding_windows_cover_every_pixel_and_agree_on_their_own_part():
    ours = model(SWIN, "TEST.SLIDING_WINDOW", 64)
    image = torch.randn(1, 3, 100, 64)
    (scores,) = inference.segment(ours, image, [(100, 64)])
    plain = model()
    (top,) = inference.segment(plain, image[:, :, :64], [(64, 64)])
    torch.testing.assert_close(scores[:, :36], top[:, :36])  # the second window starts at 36
    assert torch.isfinite(scores).all()


def test_a_large_answer_made_class_by_class_is_the_same(monkeypatch):
    scores = torch.rand(7, 12, 20)
    scores[3] = scores[1]  # of equal scores the first wins
    whole = inference.ids_at(scores, (50, 70))
    monkeypatch.setattr(inference, "STRIP", 0)
    found = inference.ids_at(scores, (50, 70))
    assert torch.equal(found, whole) and torch.equal(whole, inference.resized(scores, (50, 70)).argmax(0))


@pytest.mark.parametrize(("size", "expected"), [((480, 640), (512, 683)), ((100, 1000), (205, 2048))])
def test_shortest_edge(size, expected):
    assert inference.shortest_edge(size, 512, 2048) == expected


def test_normalisation_is_the_models():
    ours = model()
    images = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    expected = (images.float() - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor(
        [58.395, 57.12, 57.375]
    )[:, None, None]
    torch.testing.assert_close(ours.normalise(images), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), ("MODEL.BACKBONE.NAME", "vit"), ("MODEL.RESNETS.DEPTH", 51),
     ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 40), ("MODEL.MASK_FORMER.NHEADS", 2), ("MODEL.MASK_FORMER.PRE_NORM", True)],
)  # fmt: skip
def test_another_architecture_is_refused(key, value):
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        model(SWIN, key, value)


def test_losses_count_segments_over_all_ranks(monkeypatch, same_points):
    ours = model()
    labels, _, _ = labels_and_lists()
    images = torch.randn(2, 3, 96, 64)
    both = Criterion(ours.config)(ours(images), labels).total
    halves = [([images[i : i + 1]], labels[i : i + 1]) for i in range(2)]
    sums = []
    monkeypatch.setattr(criterion_module.distributed, "world", lambda: 2)
    monkeypatch.setattr(criterion_module.distributed, "total", lambda v: sums.append(v) or v)
    for (image,), label in halves:  # first pass: what each rank would contribute
        Criterion(ours.config)(ours(image), label)
    first, second = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    reduced = [a + b for a, b in zip(first, second, strict=True)]
    calls = iter(reduced + reduced)
    monkeypatch.setattr(criterion_module.distributed, "total", lambda v: next(calls))
    mean = sum(Criterion(ours.config)(ours(image), label).total for (image,), label in halves) / 2
    torch.testing.assert_close(mean, both, **CLOSE)


def test_network_has_the_sizes_of_the_config():
    made = network(config(RESNET))
    assert made.config.num_labels == 5 and made.config.decoder_layers == 4
