import json
from dataclasses import asdict

import pytest
import torch
from colours import TINY, spec
from ks_classification.models import build, layers
from ks_classification.models.build import ModelSpec
from vit_files import one_line, same

from common.errors import UserError

FACE = {"depth": 2, "width": 64, "num_heads": 2, "hidden": 96}
SPECS = {
    "timm": spec("abc"),
    "torchvision": ModelSpec("torchvision/vit_b_16", {"img_size": 32}, list("abc"), size=32),
    "hybrid": ModelSpec("hybrid_mobilenetv2", {"img_size": 32, "embed_dim": 48, "depth": 2}, list("abc"), size=32),
    "p8s8": build.spec_of("face_p8s8", {**FACE, "img_size": 24}, "abc"),
    "p12s8": build.spec_of("face_p12s8", {**FACE, "img_size": 24, "head": "softmax"}, "abc"),
}


@pytest.fixture(scope="module", params=[k for k in SPECS if k != "torchvision"])
def case(request):
    torch.manual_seed(0)
    s = SPECS[request.param]
    return request.param, s, build.build(s)


def images(s, count=3):
    return torch.rand(count, 3, s.size, s.size, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_classifier_on_the_embedding(case):
    _, s, model = case
    with torch.no_grad():
        logits, embedding = layers.forward(model, images(s))
        same(logits, layers.classifier(model)(embedding))
    assert logits.shape == (3, 3) and embedding.dim() == 2


def test_both_ffn_layers_and_all_projections_of_every_block_are_found(case):
    name, _, model = case
    assert [len(names) for names in layers.adapter_targets(model).values()] == [4, 4], name


def test_new_rows_leave_old_ones_bit_for_bit(case):
    name, s, _ = case
    model = build.build(s)
    head = layers.classifier(model)
    old, before = head.weight.detach().clone(), layers.forward(model, images(s))[0]
    assert layers.widen(model, 5, seed=1) is model
    assert torch.equal(head.weight[:3], old) and head.out_features == model.num_classes == 5
    torch.testing.assert_close(layers.forward(model, images(s))[0][:, :3], before, rtol=1e-6, atol=1e-6)
    bound = (6 / (2 + old.shape[1])) ** 0.5
    assert 0.5 * bound < head.weight[3:].abs().max() <= bound, "xavier uniform"
    if name in ("timm", "hybrid", "p12s8"):
        assert head.bias[3:].abs().max() == 0


def test_a_head_is_never_narrowed_by_widening():
    with pytest.raises(UserError, match="3 logit rows, but only 2 classes"):
        layers.widen(build.build(SPECS["timm"]), 2)


def test_chosen_rows_answer_as_before(case):
    _, s, _ = case
    model = build.build(s)
    before = layers.forward(model, images(s))[0]
    layers.select_rows(model, [2, 0])
    torch.testing.assert_close(layers.forward(model, images(s))[0], before[:, [2, 0]], rtol=1e-6, atol=1e-6)
    assert model.num_classes == 2


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"args": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' is not allowed"),
        ({"args": {"pretrained": True}}, "'pretrained' is not allowed"),
        ({"args": {"pretrained_cfg": {"file": "evil.pth"}}}, "'pretrained_cfg' is not allowed"),
        ({"args": {"cache_dir": "elsewhere"}}, "'cache_dir' is not allowed"),
        ({"args": {"scriptable": True}}, "'scriptable' is not allowed"),
        ({"args": {"__class__": 1}}, "'__class__' is not allowed"),
        ({"args": {"global_pool": "http://host/x"}}, "global_pool takes a number"),
        ({"args": {"depth": {"a": 1}}}, "depth takes a number"),
        ({"args": {"depth": ["a"]}}, "depth takes a number"),
        ({"args": ["depth"]}, r"Expected a table, got a list - at `\$.args`"),
        ({"name": "hf-hub:someone/model"}, "is no model name"),
        ({"name": "hf_hub:someone/model"}, "is no model name"),
        ({"name": "local-dir:/some/folder"}, "is no model name"),
        ({"name": "https://host/model"}, "is no model name"),
        ({"name": 5}, r"Expected text, got a whole number - at `\$.name`"),
    ],
)
def test_a_model_folder_can_have_nothing_fetched_opened_or_run(tmp_path, monkeypatch, changes, word):
    import timm

    monkeypatch.setattr(timm, "create_model", None)
    (tmp_path / "spec.json").write_text(json.dumps(asdict(SPECS["timm"]) | changes))
    with pytest.raises(UserError, match=word) as error:
        build.load_folder(tmp_path)
    one_line(error)


def test_sizes_and_switches_are_allowed():
    assert build.parse_args("drop_path_rate=0.1,global_pool=avg") == {"drop_path_rate": 0.1, "global_pool": "avg"}
    args = {"img_size": [16, 16], "qk_norm": None, "weight_init": "", "drop_path_rate": 0.1, "global_pool": "avg"}
    assert build.build(spec("abc", **args)).num_classes == 3


def test_a_saved_folder_gives_the_same_model(case, tmp_path):
    from common import adapters

    _, s, model = case
    adapters.save_model(model, tmp_path, {"classes": s.classes})
    build.save_folder(tmp_path, s)
    again, found = build.load_folder(tmp_path)
    assert found == s
    with torch.no_grad():
        torch.testing.assert_close(layers.forward(again, images(s)), layers.forward(model, images(s)), rtol=0, atol=0)


def test_a_saved_folder_that_does_not_fit_is_one_line(tmp_path):
    from common import adapters

    adapters.save_model(build.build(SPECS["timm"]), tmp_path, {"classes": list("abc")})
    build.save_folder(tmp_path, spec("abc", embed_dim=64))
    with pytest.raises(UserError, match="does not fit") as error:
        build.load_folder(tmp_path)
    one_line(error)
    (tmp_path / "spec.json").write_text('{"colour": 1}')
    with pytest.raises(UserError, match="damaged"):
        build.load_folder(tmp_path)
    with pytest.raises(UserError, match="holds no model"):
        build.load_folder(tmp_path / "nowhere")


def test_dropout_is_set_behind_positions_and_in_ffns_only(case):
    name, s, _ = case
    model = build.build(s)
    layers.set_dropout(model, 0.3)
    changed = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.3]
    assert len(changed) >= 5 and not [n for n in changed if "attn" in n], (name, changed)


@pytest.mark.parametrize(
    "name, args, word",
    [
        ("vit_hugest", {}, "not known to timm; near it: .*vit_huge_patch14_224"),
        ("vit_tiny_patch16_224.nothing", {}, "no weights .nothing. of vit_tiny_patch16_224; it has: augreg"),
        ("face_p8", {}, "near it: face_p8s8, face_p12s8"),
    ],
)
def test_unknown_names_say_what_is_near(name, args, word):
    with pytest.raises(UserError, match=word):
        build.spec_of(name, args, "abc")


@pytest.mark.parametrize(
    "bad",
    [spec("abc", colour=1), spec("abc", embed_dim=33), build.spec_of("face_p8s8", {"head": "best"}, "abc"),
     build.spec_of("face_p8s8", {"img_size": 30}, "abc"), build.spec_of("hybrid_mobilenetv2", {"img_size": 30}, "abc")],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_one_line(bad):
    with pytest.raises(UserError) as error:
        build.build(bad)
    one_line(error)


def test_every_kind_states_its_pixels():
    assert (SPECS["p8s8"].mean, SPECS["p8s8"].std, SPECS["p8s8"].size) == ([0.0] * 3, [1.0] * 3, 24)
    assert build.spec_of("face_p8s8", {}, "a").size == 112 and build.spec_of("hybrid_mobilenetv2", {}, "a").size == 128
    assert build.spec_of("torchvision/vit_b_16", {}, "a").mean == [0.485, 0.456, 0.406]
    assert build.spec_of("vit_tiny_patch16_224", TINY, "a").size == 16


def test_weights_that_nobody_publishes_are_an_error():
    for s in (SPECS["hybrid"], SPECS["p8s8"]):
        with pytest.raises(UserError, match="nobody publishes"):
            build.build(s, pretrained=True)


def test_model_arguments_are_pairs():
    assert build.parse_args("depth=6, name=x,ratio=0.5,flag=true") == {
        "depth": 6,
        "name": "x",
        "ratio": 0.5,
        "flag": True,
    }
    with pytest.raises(UserError, match="name=value"):
        build.parse_args("depth")
