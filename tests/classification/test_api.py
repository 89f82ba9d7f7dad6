"""The Python API of image classification: a swap with Dataset objects, and what comes out of it."""

import ks_classification
import pytest
import timm
import torch
from colours import picture
from torch.utils.data import Dataset

from common.errors import UserError

NAMES = ["red", "green", "blue", "white"]
FAST = {
    "img_size": 16,
    "steps": 2,
    "batch_size": 4,
    "lora_rank": 2,
    "threads": 1,
    "precision": "fp32",
    "device": "cpu",
    "allow_chance": True,
}


class Colours(Dataset):
    classes = NAMES

    def __init__(self, count, start=0):
        self.items = [(picture(name, start + k), row) for row, name in enumerate(NAMES) for k in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def tiny_model(rows=3):
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=rows, **args)


@pytest.fixture(scope="module")
def swapped():
    model, records = tiny_model(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = ks_classification.swap(
        model, data=(Colours(6), Colours(3, 100)), learn=["white"], forget=["red"], class_names=NAMES[:3],
        callbacks=[lambda kind, record: records.append((kind, record))], **FAST,
    )  # fmt: skip
    return run, model, before, records


def test_a_swap_scores_every_group_and_leaves_the_model_alone(swapped):
    run, model, before, _ = swapped
    assert set(run.scores) == set(run.before) == {"learn", "forget", "retain"}
    assert all(0 <= score <= 100 for score in run.scores.values())
    assert run.classes == ("red", "green", "blue", "white") and model.head.weight.shape[0] == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_callbacks_see_every_step_and_score(swapped):
    *_, records = swapped
    steps = [record for kind, record in records if kind == "steps"]
    assert [(r["phase"], r["step"]) for r in steps] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert sum("score" in record for kind, record in records if kind == "metrics") == 9


def test_a_saved_run_is_loaded_with_its_base_model(swapped, tmp_path):
    run, model, *_ = swapped
    again = ks_classification.load_run(run.save(tmp_path / "kept"), model=model)
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        # the trained model has fast layers, which add up in another order
        torch.testing.assert_close(again.model(images), run.model(images), rtol=1e-5, atol=1e-6)
    trained, loaded = run.model.state_dict(), again.model.state_dict()
    assert trained.keys() == loaded.keys() and all(torch.equal(trained[name], loaded[name]) for name in trained)
    assert again.scores == run.scores and again.classes == run.classes
    with pytest.raises(UserError, match="exists already"):
        run.save(tmp_path / "kept")
    with pytest.raises(UserError, match="starts from a pretrained model"):
        ks_classification.load_run(tmp_path / "kept")


def test_a_report_is_one_page(swapped, tmp_path):
    run, *_ = swapped
    assert "<html" in run.report(tmp_path / "page.html").read_text()


def test_methods_that_train_all_are_loaded_too(tmp_path):
    model, data = tiny_model(), (Colours(6), Colours(3, 100))
    run = ks_classification.swap(model, data, ["white"], ["red"], class_names=NAMES[:3], method="finetune", **FAST)
    again = ks_classification.load_run(run.save(tmp_path / "kept"), model=model)
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epohcs": 3}, "unknown setting 'epohcs'; did you mean epochs"),
        ({"lr": "fast"}, "lr takes a number, got 'fast'"),
        ({"class_names": ["a"]}, "has 3 logit rows, class_names=.* names 1"),
        ({"train": Colours(1), "test": Colours(1)}, "name the images once"),
        ({"data": Colours(1)}, "a pair .train, test. of Datasets"),
        ({"learn": ["pink"]}, "--learn: unknown class 'pink'"),
        ({"data_classes": ["red"]}, "label 1 has no name"),
        ({"learn": [], "forget": []}, "what shall change"),
    ],
)
def test_wrong_calls_are_one_line(changes, message):
    call = {
        "data": (Colours(1), Colours(1, 100)),
        "learn": ["white"],
        "forget": ["red"],
        "class_names": NAMES[:3],
        **FAST,
    }
    with pytest.raises(UserError, match=message) as found:
        ks_classification.swap(tiny_model(), **{**call, **changes})
    assert "\n" not in str(found.value)


class Net(torch.nn.Module):
    """A classifier whose head is not its last linear layer, and is not called."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3 * 16 * 16, 24)
        self.fc = torch.nn.Linear(24, 3)
        self.spare = torch.nn.Linear(24, 2)

    def features(self, images):
        return self.body(images.flatten(1)).relu()

    def forward(self, images):
        return torch.nn.functional.linear(self.features(images), self.fc.weight, self.fc.bias)


def test_your_own_classifier_with_its_head_and_embeddings(tmp_path):
    torch.manual_seed(0)
    net, seen = Net(), {"step": [], "evaluate": [], "end": []}
    own = ks_classification.OwnModel(net, "fc", lambda model, images: model.features(images))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(own(images), net(images))
    run = ks_classification.swap(
        own, train=Colours(6), test=Colours(3, 100), learn=["white"], forget=["red"], class_names=NAMES[:3],
        lora_targets="model.body", on_step=seen["step"].append, on_evaluate=seen["evaluate"].append,
        on_phase_end=seen["end"].append, **FAST,
    )  # fmt: skip
    assert run.model.model.fc.weight.shape == (4, 24) and net.fc.weight.shape == (3, 24)
    assert len(seen["step"]) == 4 and [found["phase"] for found in seen["end"]] == [1, 2]
    assert seen["evaluate"][0]["scores"] == run.before and seen["end"][-1]["scores"] == run.scores
    assert run.report(tmp_path / "page.html").is_file() and run.save(tmp_path / "kept").is_dir()
    again = ks_classification.load_run(tmp_path / "kept", model=own)
    with torch.no_grad():
        torch.testing.assert_close(again.model(images), run.model(images))


def test_a_head_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no linear layer 'head'; it has: body, fc, spare"):
        ks_classification.OwnModel(Net(), "head")


def test_several_runs_on_one_base(swapped, tmp_path):
    run, model, *_ = swapped
    run.save(tmp_path / "a")
    run.save(tmp_path / "b")
    swaps = ks_classification.load_runs([tmp_path / "a", tmp_path / "b"], model=model)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), swaps.using("b") as adapted:
        torch.testing.assert_close(adapted(images), run.model(images), rtol=0, atol=1e-6)
    assert swaps.names == ["a", "b"] and swaps.model.head.weight.shape[0] == 3
