"""Backbone and pixel decoder of a segmenter that never change are run once for each picture."""

import pytest
import torch
from ks_segmentation.data.sets import MaskSet
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from ks_segmentation.models.mask2former.model import Mask2Former
from test_segmentation_domain import GROUPS, KNOWN, RESNET, SMALL, model, scene
from toy import make_trainer

from common.frozen import FrozenConfig
from common.methods._base import Position
from common.plan import make_plan

PLAN = make_plan("fltf", *(GROUPS[name] for name in ("learn", "forget", "retain")))


def made(base, folder, **config):
    data = MaskSet(tuple("abcdef"), [scene(i) for i in range(6)], [scene(i) for i in range(6)])
    frozen = FrozenConfig(feature_cache=str(folder) if folder else "none", **config)
    settings = MaskConfig(cache_dir="", augment=bool(frozen.views))
    return SegmentationDomain(base, KNOWN, [data], GROUPS, settings, frozen=frozen)


def steps(domain, folder, blocks="last1"):
    trainer = make_trainer(domain, PLAN, "replay", folder, lora_blocks=blocks, batch_size=2, steps=2)
    phase = PLAN.phases[0]
    trainer._begin(phase, 0)
    batches = trainer._batches(phase, 0)
    return trainer, [trainer._step(Position(phase, n, 2, 2), batches, 1e-2) for n in range(2)]


@pytest.mark.parametrize("views", [0, 2])
def test_what_is_kept_gives_the_same_steps_and_answers(tmp_path, views):
    base = model(RESNET, *SMALL)
    plain, seen = steps(made(base, None, views=views), tmp_path / "plain")
    kept, found = steps(made(base, tmp_path / "kept", views=views), tmp_path / "run")
    for a, b in zip(seen, found, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert 0 < kept.domain.frozen.computed <= 6 * max(1, views) and plain.domain.frozen.computed == 0
    scores = [t.domain.evaluate(t.model.eval(), GROUPS["retain"]) for t in (plain, kept)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    count = kept.domain.frozen.computed
    kept.domain.evaluate(kept.model, GROUPS["retain"])
    assert kept.domain.frozen.computed == count


def test_a_pixel_decoder_with_adapters_is_run_each_time(tmp_path, monkeypatch):
    trainer, _ = steps(made(model(RESNET, *SMALL), tmp_path / "kept"), tmp_path / "run", blocks="")
    assert trainer.model.frozen_stages == 0 and trainer.domain.frozen.computed == 0
    monkeypatch.setattr(Mask2Former, "frozen_part", lambda self: ())
    other = made(model(RESNET, *SMALL), tmp_path / "kept")
    other.freeze(one := other.build_model().requires_grad_(False))
    assert one.frozen_stages == 0 and torch.is_tensor(next(iter(one.parameters())))
