"""Losses of a few training steps of three tiny models, as JSON, and whether they were computed fast.

python fast_curves.py             with `common.fast`, unless KS_FAST=0
python fast_curves.py missing     as if the folder common/fast were not there
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 4


def curve(model: nn.Module, adapted: list[str], loss: Callable[[], Tensor]) -> list[float]:
    """The loss before each of some steps of the adapters on the named layers."""
    from common.lora import adapters, inject

    inject(model.requires_grad_(False).train(), adapted, rank=2)
    factors = [p for layer in adapters(model).values() for p in layer.live()]
    optimizer = torch.optim.AdamW(factors, lr=1e-2)
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def dino() -> list[float]:
    from ks_detection.models.dino.criterion import Criterion
    from ks_detection.models.parts.detector import ffn_linears
    from tiny_dino import some_images, some_targets, tiny_dino

    model = tiny_dino()
    criterion, images = Criterion(model.config), some_images((128, 192), (160, 128))
    return curve(
        model, ffn_linears(model), lambda: criterion.total(criterion(model(images, some_targets()), some_targets()))
    )


def mask2former() -> list[float]:
    import tiny_mask2former
    from ks_segmentation.models.parts.criterion import Criterion

    model = tiny_mask2former.model()
    criterion = Criterion(model.config)
    images = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(160) // 40).expand(1, 128, 160)
    names = [name for name, _ in model.named_modules() if name.endswith((".fc1", ".fc2"))]
    return curve(model, names, lambda: criterion(model(images), labels).total)


def vit() -> list[float]:
    import timm

    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **small)
    images, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 5
    names = [name for name, _ in model.named_modules() if name.endswith((".fc1", ".fc2"))]
    return curve(model, names, lambda: F.cross_entropy(model(images), labels))


def curves() -> dict[str, list[float]]:
    return {made.__name__: made() for made in (dino, mask2former, vit)}


if __name__ == "__main__":
    if "missing" in sys.argv:
        sys.modules["common.fast"] = None
    from common.layers import fast

    print(json.dumps({"fast": fast is not None, "losses": curves()}))
