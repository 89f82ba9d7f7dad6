"""A swap augments training images as its base's were, where no flag says otherwise."""

import json

import pytest
from ks_classification.data.pixels import ImageConfig
from ks_classification.session import SESSION

from common.errors import UserError
from common.run_flags import parsed


def base(folder, domain="classification", **flags):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"identity": {"domain": domain}, "flags": flags}))
    return str(folder)


def views(*argv):
    config = parsed(SESSION, "swap", argv)[ImageConfig]
    return config.augment, config.flip, config.crop


def test_a_swap_trains_on_the_views_of_its_base(tmp_path):
    path = base(tmp_path / "base", flip=False, crop=0.9, augment=True)
    assert views("--checkpoint", path) == (True, False, 0.9)
    assert views("--checkpoint", path, "--flip", "--crop", "0.5") == (True, True, 0.5)


def test_of_other_checkpoints_nothing_is_known(tmp_path):
    usual = (ImageConfig.augment, ImageConfig.flip, ImageConfig.crop)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "vit"}')
    for path in (base(tmp_path / "boxes", "detection", crop="116,128"), str(tmp_path / "hub"), "weights.pth"):
        assert views("--checkpoint", path) == usual


def test_digits_are_not_mirrored():
    assert views("--data", "digits") == (True, False, ImageConfig.crop)
    assert views("--data", "digits", "--flip")[1]


@pytest.mark.parametrize("flags", [{"crop": "wide"}, {"crop": 7}, {"flip": "no"}])
def test_a_record_that_says_something_else_is_one_line(tmp_path, flags):
    with pytest.raises(UserError, match="config.json"):
        views("--checkpoint", base(tmp_path / "base", **flags))
