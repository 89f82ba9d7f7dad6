"""What does not train is computed once: the answers stay what they are, and nothing that changes is ever kept."""

import copy
import itertools

import pytest
import torch
from colours import TINY, image_set, save_folders, spec
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models import build, layers, stages
from ks_classification.models.build import ModelSpec
from ks_classification.models.face import FaceTransformer
from ks_classification.session import SESSION
from toy import make_trainer
from vit_files import one_line, same

from common import adapters, commands, lora
from common import layers as speed
from common.errors import UserError
from common.evaluation.attacks.radius import radii
from common.features import watched
from common.frozen import Frozen, FrozenConfig
from common.methods._base import Position
from common.plan import make_plan
from common.report.runs import read_run
from common.report.sections import facts
from common.schema import read_json
from common.settings import settings_from
from common.sparsity import block_of
from common.streams import Ordered, Stream
from common.teacher import Teacher

NAMES = ["red", "green", "blue", "yellow"]
PLAN = make_plan("fltf", ["white"], ["red"], ["green", "blue"])
KNOWN = ["red", "green", "blue"]


def timm(**args):
    return build.build(spec(NAMES, **args))


def torchvision():
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(16, 8, 3, 2, 32, 64, num_classes=4)


def face():
    return FaceTransformer(4, depth=3, image_size=16, width=32, num_heads=2, hidden=64, dropout=0.0)


def hybrid():
    return build.build(ModelSpec("hybrid_mobilenetv2", {"img_size": 32, "embed_dim": 48, "depth": 2}, NAMES, size=32))


MODELS = {
    "timm": timm,
    "averaging": lambda: timm(global_pool="avg"),
    "torchvision": torchvision,
    "face": face,
    "hybrid": hybrid,
}


@pytest.mark.parametrize("position", ["", "ffn", "all"])
@pytest.mark.parametrize("kind", MODELS)
def test_stages_give_the_answers_and_gradients_of_the_model(kind, position):
    """Also where only the class token is computed in the last block, and from a cached middle on."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    if position:
        model.requires_grad_(False)
        targets = layers.adapter_targets(model)
        lora.inject(model, targets["ffn"] + (targets["attention"] if position == "all" else []), 2)
    for parameter in layers.classifier(model).parameters() if kind == "torchvision" else ():
        torch.nn.init.normal_(parameter)
    for adapter in lora.adapters(model).values():
        torch.nn.init.normal_(adapter.lora_B, std=0.1)
    images = torch.randn(3, 3, 32 if kind == "hybrid" else 16, 32 if kind == "hybrid" else 16)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain, own = layers.forward(model.train(), images), stages.forward(model, images)
    for a, b in zip(plain, own, strict=True):
        same(a, b)
    slopes = [torch.autograd.grad(out[0].square().sum(), trained, allow_unused=True) for out in (plain, own)]
    for a, b in zip(*slopes, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            same(a, b, 1e-4)
    chain = stages.chain(model)
    assert chain.narrow == len(chain.stages) - (0 if kind == "averaging" else 2)
    same(stages.forward(model, chain.run(images, 0, 4), 4)[0], plain[0])


def test_a_model_that_somebody_listens_to_is_run_as_it_is():
    model, seen = timm(), []
    hook = model.blocks[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    stages.forward(model, torch.randn(2, 3, 16, 16))
    hook.remove()
    assert seen[0].shape == (2, 5, 32) and stages.chain(model) is not None


@pytest.mark.parametrize("kind", ["timm", "averaging", "torchvision", "hybrid"])
def test_stages_tell_those_who_watch_blocks_what_the_blocks_give(kind):
    model, side = MODELS[kind](), 32 if kind == "hybrid" else 16
    images = torch.randn(3, 3, side, side)
    names = list(dict.fromkeys(map(block_of, layers.adapter_targets(model)["ffn"])))
    with watched(model, names) as told:
        stages.forward(model, images)
        chain = stages.chain(model)
        heard = next(i for i, stage in enumerate(chain.stages) if stage.keepers)
        assert chain.kept(len(chain.stages)) <= heard, "nothing is heard of what comes from a cache"
    with watched(model, names) as seen:
        layers.forward(model, images)
    assert list(told) == list(seen) == names and len(names) >= 2
    for name in names:
        same(told[name], seen[name])


def test_a_watched_model_reads_its_stem_from_what_is_kept(tmp_path):
    """Every model on one stem reads the same outputs; the blocks behind it are heard."""
    like = ModelSpec("hybrid_mobilenetv2", {"img_size": 32, "embed_dim": 48, "depth": 2}, KNOWN, size=32)
    images, counts = image_set([*KNOWN, "white"], train=2, test=2), []
    base = build.build(like)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.nn.init.normal_(base.blocks[0].mlp.fc1.weight)
        frozen = FrozenConfig(views=0, feature_cache=str(tmp_path))
        domain = ClassificationDomain(like, images, PLAN.groups, ImageConfig(), base=base, frozen=frozen)
        domain.freeze(model := domain.build_model().eval())
        stream = Ordered(0, 8)
        (batch,) = domain.loader(["red"], train=True, stream=stream)
        assert batch.images is None, "drawn as in tests, it comes again"
        with torch.inference_mode(), watched(model, ["blocks.0", "blocks.1"]) as told:
            found = domain.predict(model, batch)
        with torch.inference_mode(), watched(model, ["blocks.0", "blocks.1"]) as seen:
            same(layers.forward(model, domain.shown(batch).images)[0], found.scores)
        for name in seen:
            same(told[name], seen[name])
        counts.append(domain.frozen.computed)
    assert counts == [2, 0]


def make(folder, base=None, views=2, fast=False, **config):
    """A domain of four colours with a cache, or without where there is no folder."""
    frozen = FrozenConfig(views=views, fast=fast, feature_cache=str(folder) if folder else "none")
    images = image_set([*KNOWN, "white"], train=4, test=3)
    base = base or build.build(spec(KNOWN, depth=4))
    return ClassificationDomain(
        spec(KNOWN, depth=4), images, PLAN.groups, ImageConfig(**config), base=base, frozen=frozen
    )


def steps(domain, folder, count=3, blocks="last2", method="mask_replay"):
    """The trainer after some steps of the phases, and the gradient norms and losses it saw."""
    trainer = make_trainer(domain, PLAN, method, folder, lora_blocks=blocks, batch_size=4, steps=count)
    seen = []
    for phase in PLAN.phases:
        trainer._begin(phase, 0)
        batches = trainer._batches(phase, 0)
        seen += [trainer._step(Position(phase, n, count, count), batches, 1e-2) for n in range(count)]
    return trainer, seen


def test_training_on_what_is_kept_is_training_on_the_images(tmp_path):
    base = build.build(spec(KNOWN, depth=4))
    plain, seen = steps(make(None, base), tmp_path / "plain")
    kept, found = steps(make(tmp_path / "kept", base), tmp_path / "run")
    for a, b in zip(seen, found, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert plain.domain.frozen.computed == 0 and kept.domain.frozen.computed > 0
    scores = [t.domain.evaluate(t.model.eval(), PLAN.groups["retain"]) for t in (plain, kept)]
    assert scores[0] == scores[1]
    again, _ = steps(make(tmp_path / "kept", base), tmp_path / "again")
    assert again.domain.frozen.computed == 0 and again.domain.frozen.read > 0, "other runs read what this one kept"


def test_half_the_bits_are_kept_by_fast_and_all_otherwise(tmp_path):
    base = build.build(spec(KNOWN, depth=4))
    sizes, losses = {}, {}
    for fast in (False, True):
        _, seen = steps(make(tmp_path / str(fast), base, fast=fast), tmp_path / f"run{fast}")
        sizes[fast] = sum(path.stat().st_size for path in (tmp_path / str(fast)).glob("*.bin"))
        losses[fast] = [s["loss"] for s in seen]
    assert 0.4 < sizes[True] / sizes[False] < 0.7
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)


def test_nothing_that_trains_is_kept(tmp_path):
    """All blocks adapted, whole weights trained, or a new view each time: images are run from the start."""
    everything, _ = steps(make(tmp_path / "a"), tmp_path / "a1", 1, blocks="")
    whole = make_trainer(make(tmp_path / "b"), PLAN, "finetune", tmp_path / "b1", steps=1, batch_size=4)
    for trainer in (everything, whole):
        assert trainer.model.frozen_stages == 0 and not trainer.domain.pixels["train"].deferred
    fresh = make(tmp_path / "c", views=0)
    make_trainer(fresh, PLAN, "replay", tmp_path / "c1", lora_blocks="last2")
    assert fresh.pixels["test"].deferred and not fresh.pixels["train"].deferred


def test_changed_weights_are_other_weights(tmp_path):
    domain = make(tmp_path)
    trainer, _ = steps(domain, tmp_path / "run", 1)
    batch = next(iter(domain.loader(["red"], train=False)))
    before = domain.predict(trainer.model, batch).scores
    with torch.no_grad():
        trainer.model.blocks[0].mlp.fc1.weight.mul_(3)
    after = domain.predict(trainer.model, batch).scores
    assert not torch.allclose(before, after)
    same(after, layers.forward(trainer.model, domain.shown(batch).images)[0])


def test_copies_share_what_is_kept(tmp_path):
    """A teacher, the merged model, and the original with the mark of the swapped one."""
    domain = make(tmp_path)
    trainer, _ = steps(domain, tmp_path / "run", 1)
    original = domain.build_model().eval()
    domain.freeze(original, trainer.model)
    batch = next(iter(domain.loader(["red"], train=False)))
    domain.predict(trainer.model.eval(), batch)
    count = domain.frozen.computed
    for model in (Teacher(trainer.model).module, adapters.merge(trainer.model), original):
        found = domain.predict(model, batch).scores
        same(found, layers.forward(model, domain.shown(batch).images)[0])
    assert domain.frozen.computed == count


def test_dropout_below_the_adapters_is_random_unless_fast(tmp_path):
    base = build.build(spec(KNOWN, depth=4))
    layers.set_dropout(base, 0.3)
    for fast in (False, True):
        domain = make(tmp_path / str(fast), base, fast=fast)
        trainer, _ = steps(domain, tmp_path / f"run{fast}", 1, method="replay")
        assert (domain.frozen.computed > 0) == fast
        domain.predict(trainer.model.eval(), next(iter(domain.loader(["red"], train=False))))
        assert domain.frozen.computed > 0, "scoring drops nothing"


def test_a_view_is_the_same_wherever_the_picture_stands(tmp_path):
    a, b = make(tmp_path).pixels["train"], make(tmp_path).pixels["train"]
    b.items.reverse()
    draws = next(Stream(3, 6).batches(len(a)))
    turned = [type(d)(len(a) - 1 - d.index, d.seed) for d in draws]
    assert torch.equal(a.load(draws), b.load(turned))
    assert [a.key(d) for d in draws] == [b.key(d) for d in turned]
    assert len({a.key(type(d)(0, seed)) for d in draws for seed in range(9)}) == 2


def test_switched_off_nothing_else_changes(tmp_path, monkeypatch):
    base = build.build(spec(KNOWN, depth=4))
    _, fast = steps(make(tmp_path / "kept", base), tmp_path / "a")
    monkeypatch.setattr(speed, "fast", None)
    monkeypatch.setattr(stages, "fast", None)
    plain, seen = steps(make(tmp_path / "none", base), tmp_path / "b")
    assert not plain.domain.frozen.on and not (tmp_path / "none").exists()
    for a, b in zip(fast, seen, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_pictures_are_there_for_who_needs_them(tmp_path):
    domain = make(tmp_path)
    trainer, _ = steps(domain, tmp_path / "run", 1)
    batch = next(iter(domain.loader(["red"], train=False)))
    assert batch.images is None
    found = radii(domain, trainer.model.eval(), domain.shown(batch), domain.pixel_deviation)
    assert found.shape == (3,)


def test_the_command_runs_and_scores_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data, base, out = save_folders(tmp_path / "data"), tmp_path / "base", tmp_path / "swap"
    common = ["--data", data, "--batch-size", "4", "--device", "cpu", "--precision", "fp32", "--no-report"]
    args = ",".join(f"{k}={v}" for k, v in {**TINY, "depth": 4}.items() if k not in ("img_size", "patch_size"))
    model = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "8", "--model-args", args]
    known = ",".join(KNOWN)
    assert not commands.main(
        SESSION, "pretrain", [*model, *common, "--steps", "2", "--classes", known, "--output-dir", "base"]
    )
    swap = [
        "--checkpoint",
        str(base),
        "--learn",
        "white",
        "--forget",
        "red",
        "--steps",
        "2",
        "--allow-chance",
        "--fast",
    ]
    assert not commands.main(SESSION, "swap", [*swap, *common, "--output-dir", str(out)])
    capsys.readouterr()
    assert not commands.main(SESSION, "evaluate", [str(out)])
    assert "retain" in capsys.readouterr().out
    assert {path.suffix for path in (tmp_path / "results/features").iterdir()} == {".bin", ".idx"}
    assert read_json(out / "done.json")["outputs_read"] > 0
    told = dict(facts(read_run(out)))
    assert "outputs read from the cache" in told["parts that do not train"] and "probes" in told["--fast"]


def test_fast_needs_adapters():
    with pytest.raises(UserError, match="`--fast`.* trains whole weights") as error:
        settings_from((), {"method": "finetune", "fast": True})
    one_line(error)
    assert settings_from((), {"fast": True}).lora.lora_blocks == "last1/4"
    names = [f"blocks.{i}.mlp.fc1" for i in range(6)]
    assert lora.pick_blocks(names, "last1/4") == names[4:]
    with pytest.raises(UserError, match="`--lora-blocks last1/0`"):
        lora.pick_blocks(names, "last1/0")


def test_every_weight_is_in_the_name():
    """Stages hold all parameters of a model but the head and what comes after the blocks."""
    for name, kind in MODELS.items():
        model = kind()
        held = {id(t) for stage in stages.chain(model).stages for part in stage.parts
                for t in ([part] if isinstance(part, torch.Tensor) else part.parameters())}  # fmt: skip
        rest = {n for n, p in model.named_parameters() if id(p) not in held}
        assert all(n.startswith(("head", "norm.", "fc_norm", "encoder.ln", "mlp_head", "loss")) for n in rest), (
            name,
            rest,
        )
    first, second = Frozen(FrozenConfig(feature_cache="x")), Frozen(FrozenConfig(feature_cache="x"), "word")
    model = timm()
    parts = [stage.parts for stage in stages.chain(model).stages[:3]]
    names = {f._name(m, p) for f in (first, second) for m in (model, copy.deepcopy(model)) for p in (parts, parts[:2])}
    assert len(names) == 4
    assert len(list(itertools.chain(*parts))) > 3
