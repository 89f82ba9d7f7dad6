"""Merged weights in the layouts of timm, transformers and torchvision, loaded by these libraries."""

import pytest
import timm
import torch
import transformers
from colours import spec
from ks_classification.checkpoints.load import construct
from ks_classification.models.build import ModelSpec, build
from ks_classification.session import SESSION
from torchvision.models import VisionTransformer
from vit_files import randomize, tiny_timm

from common import adapters, lora
from common.errors import UserError
from common.session import Base, Loaded

NAMES = ["tabby", "tulip", "rose"]
SIZES = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}


def swapped(model, layers):
    """The model with adapters that change it."""
    lora.inject(model, layers, 2, 2.0)
    for layer in lora.adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    return model.eval()


def exported(model, about, path, kind):
    about.classes = NAMES
    return SESSION.export(Loaded(Base(model, NAMES, about), {}, {}, {}), path, kind)


def published_timm():
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2}
    return tiny_timm(rows=3), ModelSpec("published/timm", sizes, size=32)


@pytest.mark.parametrize(
    "make", [lambda: (build(spec(NAMES)), spec(NAMES)), published_timm], ids=["by name", "by file"]
)
def test_timm_and_transformers_load_the_folder(make, tmp_path):
    model, about = make()
    model = swapped(model, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc2"])
    folder = exported(model, about, tmp_path / "timm", "timm")
    images = torch.randn(2, 3, about.size, about.size)
    with torch.no_grad():
        own = adapters.merge(model)(images)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        torch.testing.assert_close(loaded(images), own)
        torch.testing.assert_close(wrapped(images).logits, own)
    assert loaded.pretrained_cfg["mean"] == tuple(about.mean) or list(loaded.pretrained_cfg["mean"]) == about.mean
    assert [wrapped.config.id2label[i] for i in range(3)] == NAMES


def test_torchvision_loads_the_file(tmp_path):
    model = construct("torchvision", {**SIZES, "num_classes": 3})
    randomize(model)
    model = swapped(model, ["encoder.layers.encoder_layer_0.mlp.0"])
    path = exported(model, ModelSpec("published/torchvision", {}, size=32), tmp_path / "m.pth", "torchvision")
    theirs = VisionTransformer(**SIZES, num_classes=3).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), adapters.merge(model)(images))


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_model_of_another_library_is_refused(kind, tmp_path):
    model = build(spec(NAMES))
    about = ModelSpec("face_p8s8" if kind == "timm" else "vit_tiny_patch16_224", {})
    if kind == "timm":
        model = torch.nn.Linear(2, 3)
    with pytest.raises(UserError, match=f"is no {kind} model"):
        exported(model, about, tmp_path / "x", kind)
    assert not (tmp_path / "x").exists()
