"""A compiled model with the operator inside trains, in one graph, as the plain one does."""

import copy

import pytest
import torch
from msda import build_once
from tiny_dino import tiny_dino

from common.lora import inject


def losses(step, encoder, steps=3):
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = step().square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_encoder_with_adapters_trains_in_one_graph(compiler):
    build_once()
    model = tiny_dino(enc_layers=1).train().requires_grad_(False)
    tokens = model.tokens(model.backbone(torch.randn(2, 3, 64, 96)), torch.zeros(2, 64, 96, dtype=torch.bool))
    encoder = model.transformer.encoder
    inject(encoder, [name for name, _ in encoder.named_modules() if name.endswith(("linear1", "linear2"))], rank=2)
    other = copy.deepcopy(encoder)
    torch.compiler.reset()
    compiled = torch.compile(other, fullgraph=True, backend=compiler)
    plain = losses(lambda: encoder(*tokens), encoder)
    assert losses(lambda: compiled(*tokens), other) == pytest.approx(plain, rel=1e-5)
    assert plain[-1] != plain[0]
