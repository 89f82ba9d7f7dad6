"""The Python API of segmentation: a swap with Dataset objects, and what comes out of it."""

import ks_segmentation
import numpy as np
import pytest
import torch
from ks_segmentation.checkpoints.record import save_config
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.data.scan import scan
from ks_segmentation.data.sets import from_datasets
from PIL import Image
from tiny_mask2former import RESNET, model
from torch.utils.data import Dataset

from common import adapters, lora
from common.errors import UserError
from common.schema import read_json

NAMES = [*"abcdef"]
KNOWN = NAMES[:5]
SMALL = ["INPUT.CROP.SIZE", [64, 64], "INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MIN_SIZE_TEST", 64]
FAST = {"steps": 2, "batch_size": 2, "lora_rank": 2, "threads": 1, "precision": "fp32", "device": "cpu", "eval_batch": 6,
        "gallery": 1, "allow_chance": True}  # fmt: skip


class Halves(Dataset):
    """Left half class k, right half the next one, the first rows without a class; `kind` of images."""

    classes = NAMES

    def __init__(self, count, kind="array"):
        self.count, self.kind, self.calls = count, kind, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.calls += 1
        ids = np.full((64, 64), index % 6, np.uint8)
        ids[:, 32:] = (index + 1) % 6
        array = np.repeat(ids[..., None] * 30, 3, 2)
        ids[:4] = 255
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        images = {"array": array, "picture": Image.fromarray(array), "tensor": tensor, "float": tensor / 255}
        return images[self.kind], torch.from_numpy(ids).long() if self.kind == "tensor" else ids


def save_base(folder):
    """A folder of ours with the tiny model."""
    base = model(RESNET, *SMALL)
    adapters.save_model(base, folder, {"classes": KNOWN})
    save_config(folder, base, KNOWN)


def call(**changes):
    arguments = {"data": (Halves(12), Halves(6)), "learn": ["f"], "forget": ["a"], "class_names": KNOWN, **FAST}
    return ks_segmentation.swap(**{"model": model(RESNET, *SMALL), **arguments, **changes})


@pytest.fixture(scope="module")
def swapped():
    base, records = model(RESNET, *SMALL), []
    before = {name: value.clone() for name, value in base.state_dict().items()}
    run = call(model=base, callbacks=[lambda kind, record: records.append((kind, record))])
    return run, base, before, records


def test_a_swap_scores_every_group_and_leaves_the_model_alone(swapped):
    run, base, before, _ = swapped
    assert set(run.scores) == set(run.before) == {"learn", "forget", "retain"}
    assert all(0 <= score <= 100 for score in run.scores.values())
    assert run.classes == tuple(NAMES) and base.num_classes == 5 and run.model.num_classes == 6
    assert not lora.adapters(base) and lora.adapters(run.model)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_callbacks_see_every_step_and_score(swapped):
    *_, records = swapped
    steps = [record for kind, record in records if kind == "steps"]
    assert [(r["phase"], r["step"]) for r in steps] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert sum("score" in record for kind, record in records if kind == "metrics") == 9


def test_a_saved_run_is_loaded_with_its_base_model(swapped, tmp_path):
    run, base, *_ = swapped
    again = ks_segmentation.load_run(run.save(tmp_path / "kept"), model=base)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for name, value in run.model(images).items():
            torch.testing.assert_close(again.model(images)[name], value, rtol=0, atol=0)
    assert again.scores == run.scores and again.classes == run.classes
    with pytest.raises(UserError, match="--config-file"):
        ks_segmentation.load_run(tmp_path / "kept")


def test_a_report_is_one_page(swapped, tmp_path):
    assert "<html" in swapped[0].report(tmp_path / "page.html").read_text()


def test_what_a_swap_gave_can_be_swapped_again(swapped):
    run, *_ = swapped
    again = call(model=run.model, class_names=run.classes, learn=[], forget=["b"], steps=1)
    assert set(again.scores) == {"forget", "retain"} and again.classes == run.classes


def test_methods_that_train_all_are_loaded_with_and_without_the_base(tmp_path):
    base = model(RESNET, *SMALL)
    run = call(model=base, method="finetune", steps=1)
    folder = run.save(tmp_path / "kept")
    for again in (ks_segmentation.load_run(folder), ks_segmentation.load_run(folder, model=base)):
        assert again.classes == run.classes
        for name, value in run.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["array", "picture", "tensor", "float"])
def test_images_of_every_kind_are_the_same_pixels(kind):
    expected, given = (from_datasets((Halves(2, k), Halves(1, k)), ()) for k in ("array", kind))
    assert given.classes == tuple(NAMES) and (len(given.train), len(given.test)) == (2, 1)
    for own, other in zip(expected.train, given.train, strict=True):
        for mine, theirs in zip(own.pair(), other.pair(), strict=True):
            assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
    assert set(np.unique(given.train[1].ids())) == {1, 2, IGNORE}


def test_a_dataset_is_read_once_for_its_classes():
    data = Halves(6)
    items = from_datasets((data, data), ()).train
    assert [sorted(found) for found in scan(items)] == [sorted((k, (k + 1) % 6)) for k in range(6)]
    assert scan(items) == scan(items) and data.calls == 6


def test_words_of_a_config_are_read_and_stand_behind_flags(tmp_path):
    words = ["INPUT.RANDOM_FLIP", "none", "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.5]
    flags = {name: value for name, value in FAST.items() if name != "steps"}
    save_base(tmp_path / "base")
    data = (Halves(12), Halves(6))
    run = ks_segmentation.swap(tmp_path / "base", data, ["f"], opts=words, lr=1e-3, **flags)
    recorded = read_json(run.folder / "config.json")
    assert recorded["identity"]["train"]["steps"] == 1 and recorded["identity"]["train"]["lr"] == 1e-3
    assert recorded["identity"]["data"]["config"]["INPUT"]["RANDOM_FLIP"] == "none"
    assert recorded["flags"]["opts"] == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, "unknown setting 'stpes'; did you mean steps"),
        ({"lr": "fast"}, "lr takes a number, got 'fast'"),
        ({"class_names": ["a"]}, "has 5 classes, class_names=.* names 1"),
        ({"model": torch.nn.Linear(2, 2)}, "a Segmenter of `build_mask2former`"),
        ({"data": Halves(1)}, "a pair .train, test. of Datasets"),
        ({"learn": ["pink"]}, "--learn: unknown class 'pink'"),
        ({"data_classes": ["a", "b"]}, "train_000001 holds the id 2, which is not in the class list .ids 0-1, 255"),
        ({"learn": [], "forget": []}, "what shall change"),
        ({"opts": ["SEED"]}, "'SEED' has no partner"),
        ({"opts": ["SOLVER.BASE_LRR", 1]}, "Did you mean SOLVER.BASE_LR"),
    ],
)
def test_wrong_calls_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as found:
        call(**changes)
    assert "\n" not in str(found.value)
