"""The published ViT-B/16 and Face Transformer answers, on checkpoints made up from the names of their tensors."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ks_classification import load_checkpoint
from ks_classification.models.face import FaceTransformer

GOLDEN = Path(__file__).parents[1] / "golden"


def made_up(shapes):
    """{name: tensor}: noise seeded by the name, scaled by its kind."""

    def value(name, shape):
        noise = (
            np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
        )
        if len(shape) >= 2:
            return noise / np.float32(np.sqrt(int(np.prod(shape[1:]))))
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise

    return {name: torch.from_numpy(value(name, shape).astype(np.float32)) for name, shape in shapes.items()}


def vit_shapes(rows=105, rank=8, width=768, hidden=3072):
    """Names and shapes of the published ViT-B/16 with adapters on both FFN layers."""
    front, back = "transformer.embeddings.", "transformer.encoder."
    shapes = {
        f"{front}position_embeddings": (1, 197, width), f"{front}cls_token": (1, 1, width),
        f"{front}patch_embeddings.weight": (width, 3, 16, 16), f"{front}patch_embeddings.bias": (width,),
        "head.weight": (rows, width), "head.bias": (rows,),
    }  # fmt: skip
    layers = {f"attn.{n}": (width, width) for n in ("query", "key", "value", "out")}
    layers |= {"ffn.fc1": (hidden, width), "ffn.fc2": (width, hidden)}
    norms = [f"{back}encoder_norm"]
    for i in range(12):
        norms += [f"{back}layer.{i}.{n}" for n in ("attention_norm", "ffn_norm")]
        for name, (out, inp) in layers.items():
            full = f"{back}layer.{i}.{name}"
            shapes |= {f"{full}.weight": (out, inp), f"{full}.bias": (out,)}
            if "ffn" in name:
                shapes |= {f"{full}.lora_A": (rank, inp), f"{full}.lora_B": (out, rank)}
    return shapes | {f"{n}.{leaf}": (width,) for n in norms for leaf in ("weight", "bias")}


def face_shapes(rank=8):
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in FaceTransformer(100).state_dict().items()}
    for name, (out, inp) in [(n, s) for n, s in shapes.items() if n.endswith(("net.0.weight", "net.3.weight"))]:
        layer = name.removesuffix(".weight")
        shapes |= {f"{layer}.lora_A": (rank, inp), f"{layer}.lora_B": (out, rank)}
    return shapes


@pytest.mark.parametrize(("case", "shapes", "size"), [("vit_b16_ks", vit_shapes(), 224), ("face_p8s8_cosface", face_shapes(), 112)])  # fmt: skip
@torch.no_grad()
def test_published_answers(case, shapes, size):
    golden = np.load(GOLDEN / f"{case}.npz")
    model = load_checkpoint(made_up(shapes))
    noise = np.random.Generator(np.random.PCG64(7)).standard_normal((2, 3, size, size)).astype(np.float32)
    images = torch.from_numpy(noise)
    found = {"logits": model(images)}
    if "embedding_only" in golden:
        found = {"embedding_only": found["logits"], "logits": model(images, torch.tensor([3, 50]))}
    for name, answer in found.items():
        scale = np.abs(golden[name]).max()
        assert np.abs(answer.numpy() - golden[name]).max() <= 1e-4 * max(1, scale), name
