"""Deformable DETR: transformers' answers, the operator inside, both key layouts, new classes, adapters, errors."""

import json
import math

import ks_detection
import pytest
import torch
from ks_detection.checkpoints.deformable_detr import our_name, to_ours
from ks_detection.checkpoints.export import export_official, published_state
from ks_detection.forgetting import miss_loss
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.deformable_detr.criterion import DeformableCriterion
from ks_detection.models.detectors import build_detector
from ks_detection.models.parts.detector import class_heads, extend_classes, ffn_linears
from ks_detection.models.parts.padding import pad_images
from ms_deform_attn import use_backend
from msda import build_once
from tiny_deformable import VARIANTS, as_ours, lively, theirs, tiny_deformable, tiny_deformable_config
from tiny_dino import some_images, some_targets, tiny_dino

from common.domain import ClassTable
from common.errors import UserError
from common.lora import adapters, inject
from common.sparsity import groups


def answers(model, images=None):
    with torch.no_grad():
        return model.eval()(images or some_images())


def same(one, other, **tolerance):
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(one[name], other[name], **tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_those_of_transformers(variant, tmp_path):
    model = theirs(**VARIANTS[variant])
    model.config.id2label = {0: "N/A", 1: "cat", 2: "N/A", 3: "dog", 4: "cow"}
    model.save_pretrained(tmp_path)
    folder, ours, padded = ks_detection.load_checkpoint(tmp_path), as_ours(model), pad_images(some_images())
    assert folder.class_table.names == ("row_0", "cat", "row_2", "dog", "cow")
    with torch.no_grad():
        expected = model(padded.pixels, (~padded.mask).long())
        found = ours(padded)
        same(folder(padded), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["pred_logits"], expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["queries"], expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert len(found["aux_outputs"]) == 2 and found["pred_logits"].std() > 0.1
    if variant == "two-stage":
        torch.testing.assert_close(
            found["enc_outputs"]["pred_logits"], expected.enc_outputs_class, rtol=1e-4, atol=1e-5
        )


def test_the_compiled_operator_and_plain_pytorch_answer_alike():
    build_once()
    model = lively(tiny_deformable())
    with use_backend("reference"):
        expected = answers(model)
    with use_backend("compiled"):
        same(answers(model), expected, rtol=1e-4, atol=1e-5)


def test_the_published_size_and_the_share_that_adapters_train():
    model = build_detector(DeformableConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 39_847_265  # as the published code counts
    model.requires_grad_(False)
    inject(model, ffn_linears(model), rank=8, alpha=1.0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 245_760
    assert len(groups(model)) == 12  # six encoder and six decoder layers


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_names_go_there_and_back(variant, tmp_path):
    model = lively(tiny_deformable(**VARIANTS[variant]))
    state = published_state(model)
    assert {our_name(name) for name in state if "in_proj" not in name} >= {
        name for name in model.state_dict() if not any(f".{x}_proj." in name for x in "qkv")
    }
    back = to_ours(state, model.config)
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    table = ClassTable(tuple("abcde"), (1, 2, 4, 8, 9))
    again = ks_detection.load_checkpoint(export_official(model, tmp_path / "merged.pth", table))
    same(answers(again), answers(model), rtol=0, atol=0)
    assert again.class_table == table and again.config == model.config


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_file_needs_no_config(variant, tmp_path):
    config = tiny_deformable_config(backbone="resnet50", nheads=8, **VARIANTS[variant])
    model = lively(build_detector(config))
    state = {f"module.{name}": tensor for name, tensor in published_state(model).items()}
    counters = {"module.transformer.total_ops": torch.zeros(1)}  # left behind by a profiler
    torch.save({"model": state | counters, "epoch": 49}, tmp_path / "r50.pth")
    loaded = ks_detection.load_checkpoint(tmp_path / "r50.pth")
    unseen = {"num_select": 100, "dropout": 0.1} | ({"num_queries": 300} if config.two_stage else {})  # in no shape
    assert loaded.config == DeformableConfig.from_dict(config.to_dict() | unseen)
    loaded.config.num_queries = 12
    same(answers(loaded), answers(model), rtol=0, atol=0)


def test_the_packed_projection_is_read_in_torchs_order():
    """nn.MultiheadAttention with the published tensors attends as the layer does that they were split for."""
    model = tiny_deformable()
    prefix = "transformer.decoder.layers.0.self_attn."
    state = {n.removeprefix(prefix): t for n, t in published_state(model).items() if n.startswith(prefix)}
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    attention.load_state_dict(state)
    x, places = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    expected = attention(x + places, x + places, x)[0]
    found, _ = model.network.decoder.layers[0].self_attn(x, position_embeddings=places)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_published_adapters_are_adapters_at_an_eighth_and_are_merged_on_export(tmp_path):
    model = lively(tiny_deformable(lora_rank=8))
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    state = published_state(model, merge=False)
    assert (
        "transformer.decoder.layers.0.linear2.lora_B" in state
        and "transformer.encoder.layers.1.linear1.lora_A" in state
    )
    loaded = ks_detection.load_checkpoint({"model": state}, tiny_deformable_config())
    assert {layer.scale for layer in adapters(loaded).values()} == {1 / 8}
    same(answers(loaded), answers(model), rtol=0, atol=0)
    again = ks_detection.load_checkpoint(export_official(loaded, tmp_path / "merged.pth"))
    assert not adapters(again)
    same(answers(again), answers(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_new_classes_leave_old_answers_as_they_were(variant):
    model = lively(tiny_deformable(**VARIANTS[variant]))
    before = answers(model)
    extend_classes(model, 8)
    after = answers(model)
    torch.testing.assert_close(after["pred_logits"][..., :5], before["pred_logits"], rtol=1e-5, atol=1e-5)
    assert after["pred_logits"].shape[-1] == 8 == model.config.num_classes
    assert len(class_heads(model)) == {"plain": 1, "refined": 3, "two-stage": 4}[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_and_every_adapter_gets_a_gradient(variant):
    model = lively(tiny_deformable(**VARIANTS[variant])).train()
    criterion = DeformableCriterion(model.config)
    criterion.total(criterion(model(some_images()), some_targets())).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.requires_grad_(False)
    names = inject(model, ffn_linears(model), rank=2, alpha=1.0)
    criterion.total(criterion(model(some_images()), some_targets())).backward()
    assert len(names) == 2 * (2 + 3)
    assert all(model.get_submodule(name).lora_B.grad.abs().sum() > 0 for name in names)


def test_the_loss_is_transformers_own_up_to_the_published_matching_cost():
    model = theirs()
    model.config.class_cost, model.config.auxiliary_loss = 2, True  # published; transformers matches with 1
    targets, padded = some_targets(), pad_images(some_images())
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    with torch.no_grad():
        expected = model(padded.pixels, (~padded.mask).long(), labels=labels)
    outputs = [{"pred_logits": o["logits"], "pred_boxes": o["pred_boxes"]} for o in expected.auxiliary_outputs]
    whole = {"pred_logits": expected.logits, "pred_boxes": expected.pred_boxes, "aux_outputs": outputs}
    criterion = DeformableCriterion(tiny_deformable_config())
    terms = criterion(whole, targets)
    for name, value in expected.loss_dict.items():
        if name.startswith("loss_"):
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=name)
    weighted = [name for name in terms if criterion.weight(name)]
    assert len(weighted) == 9 and [criterion.weight(n) for n in ("loss_ce", "loss_bbox_1", "loss_giou")] == [2, 5, 2]


def test_without_auxiliary_losses_the_last_layer_is_trained_on_alone():
    model = lively(tiny_deformable(aux_loss=False, with_box_refine=True)).train()
    outputs = model(some_images())
    assert outputs["aux_outputs"] == []
    assert model.class_parameters() == ["class_embed.2.weight", "class_embed.2.bias"]
    criterion = DeformableCriterion(model.config)
    terms, items = criterion.with_matches(outputs, some_targets())
    assert [name for name in terms if criterion.weight(name)] == ["loss_ce", "loss_bbox", "loss_giou"]
    assert miss_loss(outputs, some_targets(), items).shape == (3,)


def test_proposals_of_a_two_stage_model_are_of_one_class():
    model = lively(tiny_deformable(**VARIANTS["two-stage"])).train()
    criterion, outputs = DeformableCriterion(model.config), model(some_images())
    terms = criterion(outputs, some_targets())
    others = [target | {"labels": (target["labels"] + 1) % 5} for target in some_targets()]
    changed = criterion(outputs, others)
    assert changed["loss_ce_enc"] == terms["loss_ce_enc"] > 0 and changed["loss_ce"] != terms["loss_ce"]
    assert criterion.classification(terms) == 2 * sum(terms[f"loss_ce{x}"] for x in ("", "_0", "_1"))
    assert model.class_parameters() == [f"class_embed.{i}.{part}" for i in range(3) for part in ("weight", "bias")]


def test_boxes_start_at_their_references_with_the_published_size():
    outputs = answers(tiny_deformable())
    size = 1 / (1 + math.exp(2.0))
    torch.testing.assert_close(outputs["pred_boxes"][..., 2:], torch.full((2, 12, 2), size))
    torch.testing.assert_close(outputs["pred_logits"].sigmoid().mean(), torch.tensor(0.01), rtol=0.5, atol=0)


def test_autocast_keeps_boxes_and_losses_in_float32():
    model = lively(tiny_deformable()).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(some_images())
        terms = DeformableCriterion(model.config)(outputs, some_targets())
    assert outputs["pred_boxes"].dtype == torch.float32
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_maps_of_the_backbone_give_the_same_outputs():
    model = lively(tiny_deformable()).eval()
    padded = pad_images(some_images())
    with torch.no_grad():
        same(model.decode(model.maps(padded.pixels), padded.mask), model(padded), rtol=0, atol=0)


def test_errors_say_what_does_not_fit(tmp_path):
    state = published_state(tiny_deformable())
    with pytest.raises(UserError, match="5 classes, the config wants 7"):
        ks_detection.load_checkpoint(state, tiny_deformable_config(num_classes=7))
    with pytest.raises(UserError, match="holds a deformable_detr, the config wants a dino"):
        ks_detection.load_checkpoint(state, {"backbone": "resnet50"})
    with pytest.raises(UserError, match="holds a dino, the config wants a deformable_detr"):
        ks_detection.load_checkpoint(published_state(tiny_dino()), tiny_deformable_config())
    with pytest.raises(UserError, match="the backbone is no ResNet"):
        ks_detection.load_checkpoint(state)
    short = {name: t for name, t in state.items() if "norm1" not in name}
    with pytest.raises(UserError, match="keys are missing"):
        ks_detection.load_checkpoint(short, tiny_deformable_config())
    changed = state | {"class_embed.1.bias": state["class_embed.1.bias"] + 1}
    with pytest.raises(UserError, match="copies of"):
        ks_detection.load_checkpoint(changed, tiny_deformable_config())
    with pytest.raises(UserError, match="`two_stage` needs"):
        DeformableConfig(two_stage=True)
    with pytest.raises(UserError, match="`dilation`"):
        DeformableConfig.from_dict({"dilation": True})
    with pytest.raises(UserError, match="`modelname` is 'yolo'"):
        build_detector({"modelname": "yolo"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "detr"}, "a 'detr'; detectors known here: "),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:x/y"}}, "no plain model name"),
        ({"backbone_config": None, "backbone": "x", "use_timm_backbone": False}, "would be downloaded"),
        ({"backbone_config": None, "backbone": "x/y", "backbone_kwargs": {"a": 3}}, "no plain model name"),
        ({"d_model": "wide"}, "config.json"),
    ],
)
def test_a_folder_that_is_not_supported_is_one_line(changes, message, tmp_path):
    theirs().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message) as raised:
        ks_detection.load_checkpoint(tmp_path)
    assert "\n" not in str(raised.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError):
        ks_detection.load_checkpoint(tmp_path)
