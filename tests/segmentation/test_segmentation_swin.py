"""Our forward of transformers' Swin blocks gives their answers and gradients, at sizes that windows do not divide."""

import copy

import pytest
import torch
from ks_segmentation.models.mask2former.swin import use_fast_blocks
from transformers import SwinBackbone, SwinConfig

from common.layers import use_fast_linears
from common.lora import inject


def backbones(**settings):
    """(transformers' own, the same with our blocks); nothing in them is at a trivial start."""
    torch.manual_seed(0)
    stages = ["stage1", "stage2"]
    config = SwinConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, out_features=stages, **settings)
    theirs = SwinBackbone(config)
    if not any(name.endswith("q_proj") for name, _ in theirs.named_modules()):
        pytest.skip("this transformers keeps its own blocks")
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(theirs)
    use_fast_linears(ours)
    use_fast_blocks(ours)
    return theirs.train(), ours.train()


def answers(backbone, pictures):
    """Both maps, and every gradient by name."""
    torch.manual_seed(1)  # of drop path
    maps = backbone(pictures).feature_maps
    sum(m.square().sum() for m in maps).backward()
    return {"maps": list(maps), **{name: p.grad for name, p in backbone.named_parameters()}}


@pytest.mark.parametrize("size", [(64, 64), (52, 40), (24, 100)])  # maps of 16 x 16, 13 x 10 and 6 x 25
@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"drop_path_rate": 0.5}], ids=["", "no bias", "paths"])
def test_answers_and_gradients_are_those_of_transformers(size, settings):
    pictures = torch.randn(2, 3, *size)
    theirs, ours = (answers(backbone, pictures) for backbone in backbones(**settings))
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        # keys' biases have no gradient but rounding
        scale = 1.0 if value is None or name == "maps" else max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_adapted_projections_are_run():
    ours = backbones()[1].eval()
    pictures = torch.randn(1, 3, 48, 48)
    expected = ours(pictures).feature_maps[0]
    (name,) = [n for n, _ in ours.named_modules() if n.endswith("layers.0.blocks.0.attention.q_proj")]
    inject(ours, [name], rank=2)
    torch.testing.assert_close(ours(pictures).feature_maps[0], expected)
    ours.get_submodule(name).lora_B.data.normal_()
    assert not torch.allclose(ours(pictures).feature_maps[0], expected)


def test_another_size_and_another_batch_do_not_disturb():
    theirs, ours = (backbone.eval() for backbone in backbones())
    for shape in [(1, 3, 40, 52), (3, 3, 64, 32), (1, 3, 40, 52)]:
        pictures = torch.randn(shape)
        for mine, other in zip(ours(pictures).feature_maps, theirs(pictures).feature_maps, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
