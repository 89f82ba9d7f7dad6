import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colours import COLOURS, domain, image_set, picture, spec
from ks_classification.data.images import ImageSet, Item
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models import build, layers
from ks_classification.models.build import ModelSpec
from toy import make_trainer
from vit_files import one_line, same

from common import lora
from common.errors import UserError
from common.plan import make_plan
from common.rows import TrainedRows
from common.schema import read_json
from common.streams import Draw, Ordered, Stream

GROUPS = {"learn": ["white"], "forget": ["red", "green"], "retain": ["blue", "yellow", "black"]}
BASE = ["red", "green", "blue", "yellow", "black"]
STREAM = Stream(seed=5, batch_size=4)


@pytest.fixture(scope="module")
def plain():
    return domain(GROUPS, names=BASE)


def first(loader, count=3):
    return list(itertools.islice(iter(loader), count))


def same_batches(a, b):
    assert len(a) == len(b) > 0
    for one, two in zip(a, b, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels) and one.names == two.names


# ---- the model -----------------------------------------------------------------------------------------------


def test_new_classes_get_rows_behind_the_old_ones(plain):
    assert plain.classes.names == (*BASE, "white")
    assert layers.classifier(plain.build_model()).weight.shape[0] == 6


def test_only_the_rows_of_learned_classes_move(plain):
    model = plain.build_model().requires_grad_(False).train()
    rows = plain.head_rows(model, ["white"])
    assert rows == {"head.weight": [5], "head.bias": [5]}
    TrainedRows(model, rows)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.0)
    for batch in first(plain.loader(["white", "red"], train=True, stream=STREAM)):
        optimizer.zero_grad()
        plain.predict(model, batch).loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        if name in rows:
            assert torch.equal(value[:5], before[name][:5]) and not torch.equal(value[5:], before[name][5:])
        else:
            assert torch.equal(value, before[name]), name


def test_adapters_go_on_both_ffn_layers(plain):
    model = plain.build_model()
    assert lora.select(plain.lora_targets(model), lora.LoraConfig(), model) == layers.adapter_targets(model)["ffn"]


def test_a_random_start_keeps_a_frozen_stem():
    s = ModelSpec("hybrid_mobilenetv2", {"img_size": 32, "embed_dim": 48, "depth": 1}, ["red", "blue"], size=32)
    base = build.build(s)
    with torch.no_grad():
        for p in base.patch_embed.backbone.parameters():
            p.add_(1)
    d = ClassificationDomain(s, image_set(["red", "blue"]), {"retain": ["red", "blue"]}, ImageConfig(), base=base)
    fresh = d.build_model(pretrained=False)
    for name, value in fresh.patch_embed.backbone.state_dict().items():
        assert torch.equal(value, base.patch_embed.backbone.state_dict()[name])
    assert not torch.equal(fresh.blocks[0].mlp.fc1.weight, base.blocks[0].mlp.fc1.weight)


# ---- batches -------------------------------------------------------------------------------------------------


def test_batch_k_depends_on_seed_and_k_alone(plain):
    whole = first(plain.loader(GROUPS["retain"], train=True, stream=STREAM), 6)
    later = first(plain.loader(GROUPS["retain"], train=True, stream=Stream(5, 4, start=3)), 3)
    same_batches(whole[3:], later)
    other = first(plain.loader(GROUPS["retain"], train=True, stream=Stream(6, 4)), 6)
    assert any(not torch.equal(a.images, b.images) for a, b in zip(whole, other, strict=True))


def test_two_ranks_share_the_batches_of_one(plain):
    whole = first(plain.loader(BASE, train=True, stream=Stream(5, 4)), 3)
    ranks = [first(plain.loader(BASE, train=True, stream=Stream(5, 2, rank=r, world=2)), 3) for r in (0, 1)]
    for k, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([ranks[r][k].images for r in (0, 1)]))


def test_a_round_holds_every_training_image_once(plain):
    batches = first(plain.loader(["red", "green"], train=True, stream=STREAM), 3)
    assert sorted(n for b in batches for n in b.names) == sorted(
        i.name for i in plain.items["train"] if i.label in ("red", "green")
    )


def test_a_validation_share_is_scored_and_never_trained_on(plain):
    every = {item.name for item in plain.items["train"]}
    held = [domain(GROUPS, ImageConfig(validation=0.34), names=BASE) for _ in range(2)]
    train, test = ({item.name for item in held[0].items[part]} for part in ("train", "test"))
    assert train | test == every and not train & test
    for name in [*BASE, "white"]:
        assert 0 < sum(item.label == name for item in held[0].items["test"]) <= 2
    assert {item.name for item in held[1].items["test"]} == test
    assert held[0].describe()["validation"] == 0.34 and "validation" not in plain.describe()


def test_an_ordered_pass_is_finite_and_without_augmentation(plain):
    batches = list(plain.loader(["red"], train=True, stream=Ordered(0, 4)))
    assert [len(b.names) for b in batches] == [4, 2]
    again = domain(GROUPS, ImageConfig(augment=False), names=BASE)
    same_batches(batches, list(again.loader(["red"], train=True, stream=Ordered(0, 4))))


def test_augmentation_can_be_switched_off():
    still = domain(GROUPS, ImageConfig(augment=False), names=BASE)
    draws = first(still.loader(["red"], train=True, stream=Stream(1, 6)), 2)
    images = {}
    for batch in draws:
        for name, image in zip(batch.names, batch.images, strict=True):
            assert torch.equal(images.setdefault(name, image), image)


def test_test_images_come_in_order_and_normalised(plain):
    batches = list(plain.loader(["blue", "red"], train=False))
    assert [n for b in batches for n in b.names] == [f"test/{c}/{k}" for c in ("blue", "red") for k in range(3)]
    assert batches[0].images.abs().max() <= 1 and batches[0].labels.tolist() == [2, 2, 2, 0, 0, 0]


def test_squeezing_to_a_square_is_what_was_published():
    d = domain(GROUPS, ImageConfig(keep_aspect=False, augment=False), names=BASE)
    wide = Item("wide", "red", np.concatenate([picture("red", 0), picture("blue", 0)], axis=1))
    images = ImageSet(["red"], [wide], [wide])
    squeezed = ClassificationDomain(spec(["red"]), images, {"retain": ["red"]}, d.config)
    cropped = ClassificationDomain(spec(["red"]), images, {"retain": ["red"]}, ImageConfig())
    left, right = ([p[:, :, s].mean((1, 2)) for s in (slice(0, 5), slice(11, 16))] for p in
                   (next(iter(x.loader(["red"], train=False))).images[0] for x in (squeezed, cropped)))  # fmt: skip
    assert left[0][0] > 0 and left[1][2] > 0, "red on the left, blue on the right"
    assert right[0][0] > 0 and right[1][2] > 0, "the crop's middle holds both as well"


@pytest.mark.parametrize("augment", [True, False])
def test_worker_processes_change_no_batch(plain, augment):
    here = domain(GROUPS, ImageConfig(augment=augment), names=BASE)
    there = domain(GROUPS, ImageConfig(augment=augment, workers=1), names=BASE)
    state = torch.get_rng_state()
    batches = first(there.loader(BASE, train=True, stream=STREAM), 8)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator stays where it is"
    same_batches(batches, first(here.loader(BASE, train=True, stream=STREAM), 8))


def test_pixels_survive_pickling_for_workers_that_are_no_forks(plain, tmp_path):
    pixels = plain.pixels["train"]
    again = pickle.loads(pickle.dumps(pixels))
    draws = next(STREAM.batches(len(pixels)))
    same_batches([pixels[draws]], [again[draws]])


# ---- forward and scores --------------------------------------------------------------------------------------


def test_one_joint_forward_equals_two(plain):
    model = plain.build_model()
    batches = first(plain.loader(BASE, train=True, stream=STREAM), 2)
    with torch.no_grad():
        joint = plain.predict_together(model, batches)
        for one, batch in zip(joint, batches, strict=True):
            for a, b in zip(one, plain.predict(model, batch), strict=True):
                same(a, b)
            same(one.item_loss, F.cross_entropy(one.scores, one.labels, reduction="none"))


def test_scores_are_a_direct_count(plain):
    torch.manual_seed(3)
    model = layers.widen(build.build(spec(BASE)), 6)
    with torch.inference_mode():
        scores = plain.evaluate(model, ["red", "blue", "white"])
        right = {}
        for item in plain.items["test"]:
            if item.label in ("red", "blue", "white"):
                (one,) = plain.pixels["test"].views_of([Draw(plain.items["test"].index(item), None)])
                answer = model((one[None].float() / 255 - 0.5) / 0.5).argmax().item()
                right.setdefault(item.label, []).append(plain.classes.names[answer] == item.label)
    assert scores.keys() == {"total", "red", "blue", "white"}
    for name, found in right.items():
        assert scores[name] == pytest.approx(100 * np.mean(found), abs=1e-4)
    assert scores["total"] == pytest.approx(100 * np.mean([x for found in right.values() for x in found]), abs=1e-4)


def test_answers_say_what_the_images_of_a_class_are_called(plain):
    model = plain.build_model()
    with torch.inference_mode():
        found = plain.evaluate_groups(model, {"": BASE})[""]
        few, again = (plain.evaluate_groups(model, {"": BASE}, 4)[""] for _ in range(2))
    for name in BASE:
        assert sum(found.answers[name].values()) == pytest.approx(1, abs=1e-3)
        assert found.answers[name].get(name, 0) == pytest.approx(found.scores[name] / 100, abs=1e-4)
    assert few == again and plain._sample(BASE, 4) == plain._sample(BASE, 4) and len(plain._sample(BASE, 4)) == 4


def test_small_score_batches_change_nothing(plain):
    model = plain.build_model()
    small = domain(GROUPS, ImageConfig(eval_batch=2), names=BASE)
    with torch.inference_mode():
        assert small.evaluate(model, BASE) == pytest.approx(plain.evaluate(model, BASE))


def test_the_gallery_shows_the_same_pictures_each_time(plain):
    model = plain.build_model()
    with torch.inference_mode():
        one, two = (plain.gallery(model, BASE, 4) for _ in range(2))
    assert [i.name for i in one] == [i.name for i in two] == [f"test/{c}/0" for c in BASE[:4]]
    assert all(i.picture.startswith(b"\x89PNG") and i.truth in BASE and i.answer.endswith("%)") for i in one)


# ---- which images are used -----------------------------------------------------------------------------------


def counts(d):
    return {c: len(d._indices([c], True)) for c in COLOURS}


def test_fractions_are_honoured_per_group_and_recorded():
    d = domain(GROUPS, ImageConfig(forget_fraction=0.5, retain_fraction=0.34), names=BASE)
    assert counts(d) == {"white": 6, "red": 3, "green": 3, "blue": 2, "yellow": 2, "black": 2}
    assert d.describe()["images"]["train"] == counts(d) and d.describe()["subset"]


def test_shots_are_honoured_and_too_many_are_an_error():
    d = domain(GROUPS, ImageConfig(shots=2), names=BASE)
    assert set(counts(d).values()) == {2}
    with pytest.raises(UserError, match="`--shots 9`: class 'white' has 6 training images"):
        domain(GROUPS, ImageConfig(shots=9), names=BASE)


def test_an_unstratified_share_is_of_all_images():
    d = domain(GROUPS, ImageConfig(retain_fraction=0.5, stratified=False), names=BASE)
    assert sum(counts(d)[c] for c in GROUPS["retain"]) == 9


def test_the_seed_chooses_the_images_and_a_split_brings_them_back(tmp_path):
    from common.record import write_json

    config = ImageConfig(shots=2)
    one, two, other = (ClassificationDomain(spec(BASE), image_set(), GROUPS, config, seed=s) for s in (0, 0, 1))
    assert one.documents() == two.documents() != other.documents()
    write_json(tmp_path / "split.json", one.documents()["split.json"])
    for text in (str(tmp_path / "split.json"), str(tmp_path)):
        again = domain(GROUPS, ImageConfig(split=text), names=BASE)
        assert again.documents() == one.documents() and again.describe()["subset"] == one.describe()["subset"]


def test_a_split_of_other_images_is_an_error(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["train/red/0"]}')
    with pytest.raises(UserError, match="names no training image of class 'white'") as error:
        domain(GROUPS, ImageConfig(split=str(tmp_path)), names=BASE)
    one_line(error)
    (tmp_path / "split.json").write_text("[1]")
    with pytest.raises(UserError, match="is no split"):
        domain(GROUPS, ImageConfig(split=str(tmp_path)), names=BASE)
    with pytest.raises(UserError, match="cannot read"):
        domain(GROUPS, ImageConfig(split=str(tmp_path / "none.json")), names=BASE)


def test_missing_classes_are_scored_but_never_trained_on():
    groups = {"forget": ["red"], "retain": ["blue"], "open": ["green"]}
    images = image_set(["red", "blue", "green"])
    images.train = [i for i in images.train if i.label != "green"]
    d = ClassificationDomain(spec(["red", "blue", "green"]), images, groups, ImageConfig(shots=2), missing=["green"])
    assert d.size(["green"], train=True) == 0 and d.size(["green"], train=False) == 3
    with pytest.raises(UserError, match="class 'green' has no readable training image"):
        ClassificationDomain(spec(["red", "blue", "green"]), images, groups, ImageConfig())


def test_corrupt_images_stop_or_are_counted():
    images = image_set()
    images.train.append(Item("half.jpg", "red", b"\xff\xd8\xff\xe0 and then nothing"))
    with pytest.raises(UserError, match="half.jpg"):
        ClassificationDomain(spec(BASE), images, GROUPS, ImageConfig())
    d = ClassificationDomain(spec(BASE), images, GROUPS, ImageConfig(skip_corrupt=True))
    assert d.describe()["skipped"] == 1 and counts(d)["red"] == 6


def test_a_class_without_images_is_an_error():
    with pytest.raises(UserError, match="no images of class 'white'; the data has: red, green"):
        ClassificationDomain(spec(BASE), image_set(BASE), GROUPS, ImageConfig())


@pytest.mark.parametrize(
    "name, value",
    [("retain_fraction", 0), ("learn_fraction", 1.5), ("shots", -1), ("workers", -1), ("eval_batch", 0), ("label_smoothing", 1), ("crop", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_named_as_flags(name, value):
    with pytest.raises(UserError, match=f"`--{name.replace('_', '-')}`") as error:
        ImageConfig(**{name: value})
    one_line(error)


# ---- faces ---------------------------------------------------------------------------------------------------

FACE = {"depth": 1, "width": 64, "num_heads": 1, "hidden": 32, "dropout": 0.0, "img_size": 16}


def faces(head, **config):
    names = ["red", "green", "blue"]
    s = build.spec_of("face_p8s8", {**FACE, "head": head}, names)
    return ClassificationDomain(s, image_set(names), {"retain": names}, ImageConfig(**config), base=build.build(s))


@pytest.mark.parametrize("head", ["softmax", "cosface", "arcface", "sface"])
def test_faces_train_with_the_loss_of_their_head(head):
    d = faces(head)
    model = d.build_model()
    batches = first(d.loader(["red", "green"], train=True, stream=STREAM), 2)
    for batch, p in zip(batches, d.predict_together(model, batches), strict=True):
        z = model(batch.images)
        same(p.embedding, z)
        same(p.scores, model.head(z))
        same(p.item_loss, model.head.item_loss(z, batch.labels), 1e-4)
        same(p.loss, p.item_loss.mean())
    assert batches[0].images.min() >= 0 and batches[0].images.max() <= 1, "faces are read as 0..1"


def test_accuracy_with_margin_is_what_the_labels_make_of_it():
    plain, margin = faces("cosface"), faces("cosface", eval_margin=True)
    model = plain.build_model()
    with torch.inference_mode():
        without, scored = (d.evaluate(model, ["red", "green", "blue"]) for d in (plain, margin))
        right = []
        for batch in margin.loader(["red", "green", "blue"], train=False):
            right += (model(batch.images, batch.labels).argmax(-1) == batch.labels).tolist()
    assert scored["total"] == pytest.approx(100 * np.mean(right), abs=1e-4) and scored["total"] <= without["total"]
    assert margin.describe()["eval_margin"] and "margin" in margin.metric_label


def test_face_adapters_and_new_rows_fit():
    d = faces("cosface")
    model = d.build_model()
    targets = d.lora_targets(model)
    assert len(targets["ffn"]) == 2 and [t.rpartition(".fn.")[2] for t in targets["attention"]] == [
        "to_qkv",
        "to_out.0",
    ]
    assert d.head_rows(model, ["blue"]) == {"loss.weight": [2]}


def test_settings_for_other_heads_are_errors():
    with pytest.raises(UserError, match="--label-smoothing"):
        faces("cosface", label_smoothing=0.1)
    for make in (lambda: faces("softmax", eval_margin=True), lambda: domain(GROUPS, ImageConfig(eval_margin=True), base=build.build(spec(BASE)), names=BASE)):  # fmt: skip
        with pytest.raises(UserError, match="--eval-margin"):
            make()


def test_the_loop_takes_the_domain_as_it_is(tmp_path):
    """One step of every phase through the real loop."""
    plan = make_plan("fltf", **GROUPS)
    d = domain(plan.groups, ImageConfig(shots=2), names=BASE)
    make_trainer(d, plan, "gs_lora", tmp_path, steps=1, batch_size=2).swap()
    assert read_json(tmp_path / "split.json") == d.documents()["split.json"]
    assert read_json(tmp_path / "config.json")["identity"]["data"]["subset"] == d.subset
