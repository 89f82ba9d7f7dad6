"""The Python API of object detection: a swap with Dataset objects, and what comes out of it."""

import ks_detection
import numpy as np
import pytest
import torch
from ks_detection.data.datasets import from_datasets
from tiny_swap import KINDS, base, pictures
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from common.errors import UserError

NAMES = ["a", "b", "c", "new"]
FAST = {"augment": False, "test_size": 64, "longest": 96, "steps": 2, "batch_size": 2, "lora_rank": 2, "gallery": 0, "threads": 1,
        "precision": "fp32", "device": "cpu", "allow_chance": True}  # fmt: skip
FORMS = {
    "image": lambda image: image,
    "array": np.asarray,
    "bytes": pil_to_tensor,
    "floats": lambda image: pil_to_tensor(image) / 255,
}


class Blocks(Dataset):
    """The images of `tiny_swap`, as one of `FORMS`."""

    classes = NAMES

    def __init__(self, form="image"):
        self.form, self.records = FORMS[form], pictures().train

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = self.records[index]
        boxes = torch.tensor([thing.box for thing in record.annotations])
        return self.form(record.open()), {"boxes": boxes, "labels": [NAMES.index(t.label) for t in record.annotations]}


@pytest.fixture(scope="module")
def swapped():
    model, records = base(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    callbacks = [lambda kind, record: records.append((kind, record))]
    run = ks_detection.swap(model, data=(Blocks(), Blocks()), learn=["new"], forget=["b"], callbacks=callbacks, **FAST)
    return run, model, before, records


def test_a_swap_scores_every_group_and_leaves_the_model_alone(swapped):
    run, model, before, _ = swapped
    assert set(run.scores) == set(run.before) == {"learn", "forget", "retain"}
    assert all(0 <= score <= 100 for score in run.scores.values())
    assert run.classes == ("a", "b", "c", "new") and model.config.num_classes == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_callbacks_see_every_step_and_score(swapped):
    *_, records = swapped
    steps = [record for kind, record in records if kind == "steps"]
    assert [(r["phase"], r["step"]) for r in steps] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert sum("score" in record for kind, record in records if kind == "metrics") == 9


def test_a_saved_run_is_loaded_with_its_base_model(swapped, tmp_path):
    run, model, *_ = swapped
    again = ks_detection.load_run(run.save(tmp_path / "kept"), model=model)
    images = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        for key in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(again.model(images)[key], run.model(images)[key], rtol=0, atol=0)
    assert again.scores == run.scores and again.classes == run.classes == again.model.class_table.names
    with pytest.raises(UserError, match="starts from a pretrained detector"):
        ks_detection.load_run(tmp_path / "kept")


def test_a_report_is_one_page(swapped, tmp_path):
    run, *_ = swapped
    assert "<html" in run.report(tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_methods_that_train_all_are_loaded_with_and_without_the_model(kind, tmp_path):
    model = KINDS[kind](num_classes=3)
    run = ks_detection.swap(
        model, (Blocks(), Blocks()), ["new"], ["b"], class_names=NAMES[:3], method="finetune", **FAST
    )
    kept = run.save(tmp_path / "kept")
    for again in (ks_detection.load_run(kept, model=model), ks_detection.load_run(kept)):
        assert again.classes == ("a", "b", "c", "new")
        for name, value in run.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image_is_read_alike(form):
    data = from_datasets((Blocks(form), Blocks()), [])
    for found, wanted in zip(data.train, pictures().train, strict=True):
        assert (found.annotations, found.width, found.height) == (wanted.annotations, wanted.width, wanted.height)
        assert found.open().tobytes() == wanted.open().tobytes()


class Odd(Blocks):
    """One item, with other targets or another image."""

    def __init__(self, image=None, **changes):
        super().__init__()
        self.image, self.changes = image, changes

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image if self.image is None else self.image, target | self.changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epohcs": 3}, "unknown setting 'epohcs'; did you mean epochs"),
        ({"lr": "fast"}, "lr takes a number, got 'fast'"),
        ({"class_names": ["w", "x", "y", "z"]}, "--class-names holds 4 names, but the checkpoint has 3"),
        ({"data": Blocks()}, "a pair .train, test. of Datasets"),
        ({"data": (Odd(boxes=[[1.0, 2, 3]]), Blocks())}, "train_000000 is no .image"),
        ({"data": (Blocks(), Odd(labels=[0, 1, 2]))}, "test_000000 is no .image"),
        ({"data": (Odd(boxes=[[0.0, 0, 900, 9]]), Blocks())}, "box outside: train_000000: box .0, 0, 900, 9. in an image"),
        ({"data": (Odd(labels=[7]), Blocks())}, "label 7 has no name"),
        ({"data": (Odd(image="a.png"), Blocks())}, "is a PIL image, a uint8 array or a tensor"),
        ({"data_classes": ["a"]}, "label 1 has no name"),
        ({"learn": ["zebra"]}, "--learn: unknown class 'zebra'"),
        ({"learn": [], "forget": []}, "what shall change"),
        ({"forget_data": "x"}, "leave them or the Datasets out"),
        ({"model": torch.nn.Linear(2, 2)}, "a Linear is no detector known here"),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(changes, message):
    call = {"model": base(), "data": (Blocks(), Blocks()), "learn": ["new"], "forget": ["b"], **FAST}
    with pytest.raises(UserError, match=message) as found:
        ks_detection.swap(**{**call, **changes})
    assert "\n" not in str(found.value)
