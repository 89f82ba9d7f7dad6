"""Groups of adapter matrices, their penalty and its proximal step."""

import pytest
import torch
from test_lora import shake
from torch import nn
from toy import ToyViT

from common.errors import UserError
from common.lora import LoraConfig, adapters, fresh, inject
from common.sparsity import block_of, group_norms, group_penalty, groups, proximal_step, zero_group_ratio


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.mlp.fc1", "blocks.3"),  # timm
        ("encoder.layers.encoder_layer_3.mlp.0", "encoder.layers.encoder_layer_3"),  # torchvision
        ("encoder.layers.encoder_layer_11.self_attention", "encoder.layers.encoder_layer_11"),
        ("transformer.layers.4.1.fn.fn.net.0", "transformer.layers.4"),  # Face Transformer
        ("transformer.layers.4.0.fn.fn.to_qkv", "transformer.layers.4"),
        ("backbone.0.layers.2.blocks.17.mlp.fc2", "backbone.0.layers.2.blocks.17"),  # DINO on Swin
        ("transformer.encoder.layers.5.linear1", "transformer.encoder.layers.5"),
        ("transformer.decoder.layers.0.self_attn", "transformer.decoder.layers.0"),
        ("backbone.layers.2.blocks.17.mlp.fc2", "backbone.layers.2.blocks.17"),  # Mask2Former
        (
            "sem_seg_head.predictor.transformer_ffn_layers.8.linear2",
            "sem_seg_head.predictor.transformer_ffn_layers.8",
        ),
        ("sem_seg_head.pixel_decoder.transformer.encoder.layers.5.linear1",
         "sem_seg_head.pixel_decoder.transformer.encoder.layers.5"),
        ("model.decoder.layers.1.fc1", "model.decoder.layers.1"),  # transformers
        ("head", "head"),
        ("neck.fc", "neck"),
    ],
)  # fmt: skip
def test_blocks_are_found_from_module_names(name, block):
    assert block_of(name) == block


def adapted():
    model = ToyViT(5)
    inject(model, ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.attn.qkv"], 2)
    return model


def test_groups_by_block_layer_and_matrix():
    model = adapted()
    assert {k: len(v) for k, v in groups(model).items()} == {"blocks.0": 4, "blocks.1": 2}
    assert list(groups(model, "lora")) == list(adapters(model))
    assert list(groups(model, "matrix"))[:2] == ["blocks.0.mlp.fc1.lora_A", "blocks.0.mlp.fc1.lora_B"]
    assert len(groups(model, "matrix")) == 6
    with pytest.raises(UserError, match="--grouping"):
        groups(model, "rank")


def test_every_adapter_matrix_is_in_one_group():
    model = adapted()
    factors = {id(factor) for layer in adapters(model).values() for factor in layer.live()}
    for grouping in ("block", "lora", "matrix"):
        members = [id(p) for group in groups(model, grouping).values() for p in group]
        assert len(members) == 6 and set(members) == factors


def test_the_penalty_is_the_sum_of_frobenius_norms():
    model = shake(adapted())
    first = torch.cat([p.flatten() for p in groups(model)["blocks.0"]])
    second = torch.cat([p.flatten() for p in groups(model)["blocks.1"]])
    torch.testing.assert_close(group_penalty(groups(model)), first.norm() + second.norm())


def test_the_gradient_is_the_unit_vector_and_finite_at_exactly_zero():
    alive, dead = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.zeros(2, 2))
    group_penalty({"a": [alive], "d": [dead]}).backward()
    torch.testing.assert_close(alive.grad, alive.detach() / alive.detach().norm())
    assert torch.equal(dead.grad, torch.zeros(2, 2))


def test_the_norm_is_zero_only_for_switched_off_groups():
    norms = group_norms({"a": [nn.Parameter(torch.full((2, 2), 1e-18))], "d": [nn.Parameter(torch.zeros(2))]})
    assert norms[0] > 0 and norms[1] == 0


def test_the_proximal_step_is_the_proximal_operator():
    """argmin_x 1/2 ||x - v||^2 + t ||x||, found by brute force along v and checked against neighbours."""
    generator = torch.Generator().manual_seed(0)
    for threshold in (0.1, 1.0, 10.0):
        v = torch.randn(6, generator=generator)
        group = [nn.Parameter(v[:4].clone().view(2, 2)), nn.Parameter(v[4:].clone())]
        proximal_step({"g": group}, threshold)
        x = torch.cat([p.detach().flatten() for p in group])

        def cost(y, v=v, threshold=threshold):
            return 0.5 * (y - v).pow(2).sum() + threshold * y.norm()

        for _ in range(200):
            assert cost(x) <= cost(x + 0.1 * torch.randn(6, generator=generator)) + 1e-6
        scales = torch.linspace(0, 1, 2001)
        best = scales[torch.stack([cost(s * v) for s in scales]).argmin()]
        torch.testing.assert_close(x, best * v, rtol=0, atol=2e-3)


def test_the_proximal_step_makes_small_groups_exactly_zero_and_leaves_them_there():
    small, large = nn.Parameter(torch.full((2, 2), 0.01)), nn.Parameter(torch.ones(2, 2))
    members = {"small": [small], "large": [large]}
    for _ in range(2):
        proximal_step(members, 0.1)
        assert not small.any() and large.all()
    assert zero_group_ratio(members) == 0.5
    torch.testing.assert_close(large.norm(), torch.tensor(2 - 0.2))


def test_a_model_without_adapters_has_no_zero_groups():
    assert zero_group_ratio(groups(ToyViT(5))) == 0.0


def test_frozen_stacked_adapters_are_not_penalised():
    model = shake(adapted())
    fresh(model, LoraConfig(lora_rank=2), 0, stack=True)
    assert {k: len(v) for k, v in groups(model).items()} == {"blocks.0": 4, "blocks.1": 2}
