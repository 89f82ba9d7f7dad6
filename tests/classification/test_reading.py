"""Images are read when they are drawn, within a limit of memory."""

import itertools

import pytest
import torch
from colours import save_folders, spec
from ks_classification.data.images import load
from ks_classification.domain import ClassificationDomain, ImageConfig

from common.errors import UserError
from common.streams import Stream

BASE = ["red", "green", "blue"]
STREAM = Stream(seed=5, batch_size=4)


def first(one, count):
    return list(itertools.islice(iter(one.loader(BASE, train=True, stream=STREAM)), count))


def test_what_is_kept_decoded_changes_no_batch_and_stays_under_its_limit(tmp_path):
    images = load(save_folders(tmp_path, BASE, train=20))
    made = {}
    for room in (0, 1):
        made[room] = ClassificationDomain(spec(BASE), images, {"all": BASE}, ImageConfig(keep_decoded=room))
        made[room]._room.left = min(made[room]._room.left, 30 * 3 * 20 * 20)
    assert [len(one.pixels["train"].kept) for one in made.values()] == [0, 0], "nothing is decoded before it is drawn"
    none, some = (first(one, 30) for one in made.values())
    assert all(torch.equal(a.images, b.images) for a, b in zip(none, some, strict=True))
    assert not made[0].pixels["train"].kept and len(made[1].pixels["train"].kept) == 30
    assert made[1]._room.left == 0


def test_an_image_that_breaks_after_it_was_looked_at_stops_the_run_in_one_line(tmp_path):
    images = load(save_folders(tmp_path, BASE, train=2))
    one = ClassificationDomain(spec(BASE), images, {"all": BASE}, ImageConfig())
    (tmp_path / "train" / "red" / "0.png").write_bytes(b"no image any more")
    with pytest.raises(UserError, match="red/0.png cannot be read .no image.; mend it or take it away"):
        first(one, 4)
