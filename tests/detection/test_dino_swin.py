"""Our Swin equals the transformers one (which equals the published detection Swin) at awkward sizes."""

import pytest
import torch
from ks_detection.models.parts.swin import Swin, map_of, windows_of

NEW = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OLD = NEW | {  # transformers 4
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def theirs_from_ours(ours: dict, theirs: dict) -> dict:
    """The state of transformers' backbone with our values, whichever of its two key layouts it has."""
    new = any("o_proj" in name for name in theirs)
    prefix = "swin." if any(name.startswith("swin.") for name in theirs) else ""
    words, qkv = (NEW, "attention.{}_proj") if new else (OLD, "attention.self.{}")
    names = ("q", "k", "v") if new else ("query", "key", "value")
    state = {}
    for name, value in ours.items():
        leaf = name.rpartition(".")[2]
        if name.startswith("norm"):
            state[f"hidden_states_norms.stage{int(name[4]) + 1}.{leaf}"] = value
        elif name.startswith("patch_embed"):
            part = "patch_embeddings.projection" if ".proj." in name else "norm"
            state[f"{prefix}embeddings.{part}.{leaf}"] = value
        elif ".attn.qkv." in name:
            stem = f"{prefix}encoder.{name.partition('.attn.')[0]}."
            for which, part in zip(names, value.chunk(3), strict=True):
                state[stem + qkv.format(which) + "." + leaf] = part
        elif ".blocks." in name:
            layers, stage, blocks, block, *rest = name.split(".")
            rest = ".".join(rest)
            stem = next(word for word in words if rest.startswith(word))
            state[f"{prefix}encoder.{layers}.{stage}.{blocks}.{block}." + rest.replace(stem, words[stem])] = value
        else:
            state[f"{prefix}encoder.{name}"] = value
    return state


@pytest.mark.parametrize("size", [(100, 66), (96, 160), (61, 130)])
def test_swin_equals_transformers_at_any_size(size):
    from transformers import SwinBackbone, SwinConfig

    torch.manual_seed(0)
    ours = Swin("swin_T_224_1k", (1, 2, 3), 0.2, use_checkpoint=False).eval()
    for parameter in ours.parameters():  # biases and tables too
        torch.nn.init.normal_(parameter, std=0.05)
    stages = ["stage2", "stage3", "stage4"]
    config = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    theirs = SwinBackbone(config).eval()
    state = theirs_from_ours(ours.state_dict(), theirs.state_dict())
    report = theirs.load_state_dict(state, strict=False)
    unused = ("swin.layernorm", "relative_position_index")  # after the last stage; built by the model
    assert not report.unexpected_keys and all(any(u in key for u in unused) for key in report.missing_keys)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        for mine, other in zip(ours(image), theirs(image).feature_maps, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_windows_are_put_back_where_they_came_from():
    x = torch.randn(2, 14, 21, 3)
    torch.testing.assert_close(map_of(windows_of(x, 7), 7, 14, 21), x)


def test_checkpointing_gives_every_backbone_parameter_its_gradient():
    torch.manual_seed(0)
    backbone = Swin("swin_T_224_1k", (1, 2, 3), 0.0, use_checkpoint=True)
    backbone.patch_embed.requires_grad_(False)  # the input of the first block needs no gradient then
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for use_checkpoint in (True, False):
        backbone.zero_grad()
        backbone.use_checkpoint = use_checkpoint
        sum(level.square().mean() for level in backbone(image)).backward()
        gradients.append({n: p.grad.clone() for n, p in backbone.layers.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) == {n for n, _ in backbone.layers.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
