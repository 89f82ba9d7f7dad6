"""A detector is one file: written into a folder, found by its name, swapped with, saved and read again."""

from __future__ import annotations

import sys

import pytest
import torch
from ks_detection import models
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.models.detectors import available, build_detector
from tiny_swap import run_swap

from common import adapters, lora
from common.domain import ClassTable

FILE = '''
from dataclasses import dataclass

import torch
from torch import nn

from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.detector import Detector
from ks_detection.models.parts.padding import pad_images


@dataclass
class Config(DetectorConfig):
    modelname = "patches"
    num_classes: int = 3
    width: int = 16
    num_select: int = 20

class Patches(Detector):
    """A query per patch of 16 pixels."""

    config_type = Config

    def __init__(self, config):
        super().__init__(config)
        self.patch = nn.Conv2d(3, config.width, 16, 16)
        self.ffn = nn.ModuleDict({"linear1": nn.Linear(config.width, 32), "linear2": nn.Linear(32, config.width)})
        self.class_embed, self.box = nn.Linear(config.width, config.num_classes), nn.Linear(config.width, 4)

    def forward(self, images, targets=None):
        x = self.patch(pad_images(images).pixels).flatten(2).mT
        x = x + self.ffn["linear2"](self.ffn["linear1"](x).relu())
        return {"pred_logits": self.class_embed(x), "pred_boxes": self.box(x).sigmoid(), "queries": x, "aux_outputs": []}


DETECTOR = Patches
'''


@pytest.fixture
def patches(tmp_path, monkeypatch):
    """A base model of the new detector, whose file lies in a folder of its own."""
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors" / "patches.py").write_text(FILE)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "detectors")])
    yield lambda: build_detector({"modelname": "patches", "num_classes": 3})
    sys.modules.pop("ks_detection.models.patches", None)
    vars(models).pop("patches", None)


@pytest.mark.filterwarnings("ignore:the classes to forget end")  # so few steps forget nothing
def test_one_file_is_a_detector_that_swaps_and_loads_again(tmp_path, patches):
    assert available() == ["deformable_detr", "dino", "hub", "patches"]
    torch.manual_seed(0)
    model = patches()
    model.class_table = ClassTable(("a", "b", "c"))
    trainer, metrics = run_swap(tmp_path / "run", model=model)
    assert {line["phase"] for line in metrics} == {0, 1, 2}
    assert all(layer.lora_B.abs().sum() > 0 for layer in lora.adapters(trainer.model).values())
    merged = adapters.merge(trainer.model).eval()
    again = load_checkpoint(merged.export(tmp_path / "swapped.pth", "official"))
    image = [torch.rand(3, 64, 80)]
    torch.testing.assert_close(again(image)["pred_logits"], merged(image)["pred_logits"], rtol=0, atol=0)
    assert again.class_table.names == ("a", "b", "c", "new")


def test_rows_are_widened_and_narrowed(patches):
    model, image = patches().eval(), [torch.rand(3, 64, 64)]
    before = model(image)["pred_logits"]
    model.set_rows([2, 0], added=2)
    after = model(image)["pred_logits"]
    torch.testing.assert_close(after[..., :2], before[..., [2, 0]], rtol=0, atol=1e-6)
    assert after.shape[-1] == model.config.num_classes == 4
