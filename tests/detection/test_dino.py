"""Laws of the detector's parts on tiny tensors."""

import math

import pytest
import torch
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.criterion import Criterion, positive_matches
from ks_detection.models.dino.denoising import blocked_pairs, group_count, make_denoising
from ks_detection.models.parts.boxes import (
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    xyxy_to_cxcywh,
)
from ks_detection.models.parts.detector import ffn_linears
from ks_detection.models.parts.matcher import match, match_costs, pad_targets
from ks_detection.models.parts.padding import pad_images, resize_mask, valid_ratio
from ks_detection.models.parts.postprocess import post_process
from tiny_dino import some_images, some_targets, tiny_config, tiny_dino

from common.errors import UserError
from common.lora import inject


def test_boxes_survive_the_round_trip():
    boxes = torch.rand(7, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def test_generalized_iou_is_one_for_equal_negative_for_far_and_finite_for_empty_boxes():
    box, far = torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 3, 4, 4])
    assert generalized_iou(box, box) == 1
    assert generalized_iou(box, far) == pytest.approx(2 / 16 - 1)
    assert generalized_iou(torch.zeros(4), torch.zeros(4)).isfinite()


def test_inverse_sigmoid_clamps_at_the_published_epsilon():
    x = torch.tensor([0.0, 0.3, 1.0])
    expected = torch.tensor([math.log(1e-3), math.log(0.3 / 0.7), -math.log(1e-3)])
    torch.testing.assert_close(inverse_sigmoid(x), expected)


def test_padding_keeps_the_images_in_the_corner():
    images = some_images((40, 60), (50, 30))
    padded = pad_images(images)
    assert padded.pixels.shape == (2, 3, 50, 60)
    torch.testing.assert_close(padded.pixels[1, :, :, :30], images[1])
    assert padded.mask[0, 40:].all() and not padded.mask[0, :40].any()
    torch.testing.assert_close(valid_ratio(padded.mask), torch.tensor([[1.0, 0.8], [0.5, 1.0]]))
    assert resize_mask(padded.mask, 5, 6)[1].tolist() == [[False] * 3 + [True] * 3] * 5


def test_output_shapes_and_training_extras():
    model = tiny_dino()
    outputs = model.eval()(some_images())
    assert outputs["pred_logits"].shape == (2, 20, 5) and outputs["pred_boxes"].shape == (2, 20, 4)
    assert len(outputs["aux_outputs"]) == 2 and set(outputs["interm_outputs"]) == {"pred_logits", "pred_boxes"}
    assert "dn_outputs" not in outputs and ((outputs["pred_boxes"] >= 0) & (outputs["pred_boxes"] <= 1)).all()
    assert len(model.train()(some_images(), some_targets())["dn_outputs"]) == 3


def test_padding_changes_no_answer():
    model = tiny_dino().eval()
    small, large = some_images((64, 64), (128, 128))
    with torch.no_grad():
        alone, padded = model([small]), model([small, large])
    order = [alone["pred_logits"].max(-1).values[0].argsort(), padded["pred_logits"].max(-1).values[0].argsort()]
    got = [o["pred_logits"][0][i] for o, i in zip((alone, padded), order, strict=True)]
    # group norms see the padding, so equality is not exact; shapes and masks are what this guards
    assert got[0].shape == got[1].shape and got[1].isfinite().all()


@pytest.mark.parametrize("scales", [((1, 2, 3), 4), ((0, 1, 2, 3), 5), ((2, 3), 2)])
@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2"])
def test_scales_and_small_backbones(backbone, scales):
    stages, levels = scales
    model = tiny_dino(backbone=backbone, return_interm_indices=stages, num_feature_levels=levels).eval()
    assert model([torch.randn(3, 70, 90)])["pred_logits"].isfinite().all()


def test_timm_backbone():
    assert tiny_dino(backbone="timm:resnet10t").eval()([torch.randn(3, 64, 64)])["pred_logits"].isfinite().all()


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/some/folder", "../model"])
def test_a_timm_backbone_is_a_name_that_timm_knows(name, monkeypatch):
    import timm

    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(UserError, match="only names that timm knows"):
        tiny_dino(backbone=f"timm:{name}")


def test_the_matcher_finds_the_cheapest_assignment_of_every_layer_and_image():
    torch.manual_seed(0)
    config, targets = tiny_config(), some_targets()
    logits, boxes = torch.randn(3, 2, 6, 5), torch.rand(3, 2, 6, 4) * 0.5 + 0.2
    labels, objects = pad_targets(targets, logits.device)
    costs = match_costs(logits, boxes, labels, objects, config)
    for layer, found in enumerate(match(logits, boxes, targets, config)):
        assert sorted(zip(found.rows.tolist(), found.objects.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
        pairs = {(r, t): q for r, q, t in zip(*(part.tolist() for part in found), strict=True)}
        best = min((costs[layer, 0, a, 0] + costs[layer, 0, b, 1]).item() for a in range(6) for b in range(6) if a != b)
        mine = costs[layer, 0, pairs[0, 0], 0] + costs[layer, 0, pairs[0, 1], 1]
        assert mine.item() == pytest.approx(best) and pairs[1, 0] == costs[layer, 1, :, 0].argmin()


def test_the_criterion_has_39_weighted_terms_for_six_layers():
    model = tiny_dino(dec_layers=6).train()
    criterion = Criterion(model.config)
    terms = criterion(model(some_images(), some_targets()), some_targets())
    weighted = [name for name in terms if criterion.weight(name)]
    assert len(weighted) == 39
    total = sum(criterion.weight(name) * terms[name] for name in weighted)
    torch.testing.assert_close(criterion.total(terms), total)
    assert criterion.weight("loss_bbox_dn_3") == 5 and criterion.weight("loss_xy") == 0


def test_images_without_objects_still_give_a_loss_and_gradients_everywhere():
    model = tiny_dino().train()
    empty = [{"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    criterion = Criterion(model.config)
    criterion.total(criterion(model(some_images(), empty), empty)).backward()
    assert model.label_enc.weight.grad is not None and model.class_embed.weight.grad.abs().sum() > 0


def test_every_parameter_gets_a_gradient_so_that_ddp_needs_no_search():
    model = tiny_dino().train()
    criterion = Criterion(model.config)
    criterion.total(criterion(model(some_images(), some_targets()), some_targets())).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_every_adapter_gets_a_gradient_in_backbone_encoder_and_decoder():
    torch.manual_seed(0)
    model = tiny_dino(backbone="swin_T_224_1k", use_checkpoint=True, drop_path_rate=0.0).requires_grad_(False)
    names = inject(model, ffn_linears(model), rank=2, alpha=1.0)
    assert len(names) == 2 * (12 + 2 + 3)
    model.train()
    criterion = Criterion(model.config)
    criterion.total(criterion(model(some_images(), some_targets()), some_targets())).backward()
    for name in names:
        assert model.get_submodule(name).lora_B.grad.abs().sum() > 0, name


def test_denoising_slots_groups_and_mask():
    torch.manual_seed(0)
    config = tiny_config(dn_number=100, dn_box_noise_scale=1.0)
    noisy = make_denoising(config, some_targets())
    assert (noisy.groups, noisy.slots) == (50, 2) and noisy.labels.shape == (2, 200)
    assert noisy.used[1].view(50, 2, 2)[..., 0].all() and not noisy.used[1].view(50, 2, 2)[..., 1].any()
    true = some_targets()[0]["boxes"].repeat(100, 1).view(50, 2, 2, 4)  # group, positive or negative, slot
    shift = (cxcywh_to_xyxy(noisy.boxes[0].view(50, 2, 2, 4)) - cxcywh_to_xyxy(true)).abs()
    half = torch.cat([true[..., 2:], true[..., 2:]], -1) / 2
    assert (shift[:, 0] <= half[:, 0] + 1e-6).all()  # positives stay within half a side
    blocked = blocked_pairs(noisy, 7)
    assert blocked[200:, :200].all() and not blocked[200:, 200:].any()  # matching queries see no answer
    assert not blocked[:4, :4].any() and blocked[:4, 4:200].all() and not blocked[:4, 200:].any()
    matches = positive_matches(noisy, some_targets())
    assert len(matches.rows) == 50 * 3 and (matches.queries % 4 < 2).all()


@pytest.mark.parametrize(("number", "most", "groups"), [(100, 3, 33), (100, 300, 1), (100, 0, 1), (20, 7, 40)])
def test_group_count_follows_the_published_rule(number, most, groups):
    assert group_count(DinoConfig(dn_number=number), most) == groups


def test_matching_queries_do_not_depend_on_denoising():
    model = tiny_dino().train()
    with torch.no_grad():
        without, with_noise = model(some_images()), model(some_images(), some_targets())
    torch.testing.assert_close(without["pred_logits"], with_noise["pred_logits"], rtol=1e-4, atol=1e-5)


def test_autocast_keeps_boxes_and_losses_in_float32():
    model = tiny_dino().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(some_images(), some_targets())
        terms = Criterion(model.config)(outputs, some_targets())
    assert outputs["pred_boxes"].dtype == torch.float32
    assert all(t.dtype == torch.float32 and t.isfinite() for t in terms.values())


def test_post_processing_takes_the_best_pairs_over_queries_and_classes():
    logits = torch.full((1, 3, 2), -5.0)
    logits[0, 2, 1], logits[0, 0, 0], logits[0, 2, 0] = 3.0, 2.0, 1.0
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.1, 0.1], [0.25, 0.5, 0.5, 0.2]]])
    found = post_process({"pred_logits": logits, "pred_boxes": boxes}, [(100, 200)], 3)[0]
    assert found["labels"].tolist() == [1, 0, 0]
    torch.testing.assert_close(found["boxes"][0], torch.tensor([0.0, 40, 100, 60]))
    assert len(post_process({"pred_logits": logits, "pred_boxes": boxes}, [(1, 1)], 3, 0.9)[0]["scores"]) == 1


def test_detect_is_quiet_about_the_mode_and_strict_about_the_threshold():
    model = tiny_dino().train()
    found = model.detect(some_images(), 0.0)
    assert model.training and set(found[0]) == {"scores", "labels", "boxes"} and len(found[0]["scores"]) == 30
    with pytest.raises(UserError, match="score_threshold"):
        model.detect(some_images(), 2.0)
