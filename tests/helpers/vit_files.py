"""Small vision transformers and their files, for tests."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def tiny_timm(rows=7, **options):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=rows, **options
    )
    randomize(model)
    return model.eval()


def randomize(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.2
        p.data = torch.randn(p.shape, generator=generator) * scale + (0.8 if p.dim() == 1 else 0)


def tiny_bird(rows=7, rank=0, attention_rank=0):
    """A published state dict of two blocks, filled at random."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)

    state = {
        "transformer.embeddings.position_embeddings": draw(1, 5, 128),
        "transformer.embeddings.cls_token": draw(1, 1, 128),
        "transformer.embeddings.patch_embeddings.weight": draw(128, 3, 16, 16) / 16,
        "transformer.embeddings.patch_embeddings.bias": draw(128),
        "transformer.encoder.encoder_norm.weight": 1 + draw(128),
        "transformer.encoder.encoder_norm.bias": draw(128),
        "head.weight": draw(rows, 128),
        "head.bias": draw(rows),
    }
    shapes = {f"attn.{n}": (128, 128) for n in ("query", "key", "value", "out")}
    shapes |= {"ffn.fc1": (512, 128), "ffn.fc2": (128, 512)}
    for i in range(2):
        root = f"transformer.encoder.layer.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            state |= {f"{root}{norm}.weight": 1 + draw(128), f"{root}{norm}.bias": draw(128)}
        for name, (out, inp) in shapes.items():
            state |= {f"{root}{name}.weight": draw(out, inp), f"{root}{name}.bias": draw(out)}
            r = rank if "ffn" in name else attention_rank
            if r:
                state |= {f"{root}{name}.lora_A": draw(r, inp), f"{root}{name}.lora_B": 4 * draw(out, r)}
    return state


def bird_logits(state, images):
    """The published model written out as equations, two heads of 64."""

    def linear(x, name):
        y = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        if f"{name}.lora_A" in state:
            a, b = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
            y = y + (x @ a.T @ b.T) / a.shape[0]
        return y

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    front = "transformer.embeddings."
    x = F.conv2d(images, state[f"{front}patch_embeddings.weight"], state[f"{front}patch_embeddings.bias"], 16)
    x = torch.cat([state[f"{front}cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{front}position_embeddings"]
    for i in range(2):
        root = f"transformer.encoder.layer.{i}."
        y = norm(x, f"{root}attention_norm")
        q, k, v = (
            linear(y, f"{root}attn.{n}").unflatten(-1, (2, 64)).transpose(1, 2) for n in ("query", "key", "value")
        )
        y = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).flatten(2), f"{root}attn.out")
        y = F.gelu(linear(norm(x, f"{root}ffn_norm"), f"{root}ffn.fc1"))
        x = x + linear(y, f"{root}ffn.fc2")
    return linear(norm(x, "transformer.encoder.encoder_norm")[:, 0], "head")


def google_arrays(model):
    """The .npz layout of a timm model: kernels [in, out], attention split by heads, convolution HWIO."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for a, b in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays |= {f"{theirs}{b}/scale": state[f"{ours}{a}.weight"], f"{theirs}{b}/bias": state[f"{ours}{a}.bias"]}
        for a, b in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{theirs}MlpBlock_3/{b}/kernel"] = state[f"{ours}mlp.{a}.weight"].T
            arrays[f"{theirs}MlpBlock_3/{b}/bias"] = state[f"{ours}mlp.{a}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(128 * j, 128 * (j + 1))
            arrays[f"{attention}{name}/kernel"] = state[f"{ours}attn.qkv.weight"][rows].T.reshape(128, 2, 64)
            arrays[f"{attention}{name}/bias"] = state[f"{ours}attn.qkv.bias"][rows].reshape(2, 64)
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(2, 64, 128)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
    return arrays


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)
