"""The Face Transformer: a ViT over 112x112 faces whose class token is the face's embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.layers import attention as attend
from ks_classification.checkpoints.layouts import depth as count_blocks
from ks_classification.models.heads import build_head

HEAD_WIDTH = 64  # values per attention head


class PreNorm(nn.Module):
    """fn(LayerNorm(x))."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Attention(nn.Module):
    """Self-attention whose scores are scaled by width^-0.5, as published, not by (values per head)^-0.5."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens = x.shape[:2]
        q, k, v = self.to_qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [N, H, T, d]
        out = attend(q, k, v, scale=self.scale)
        return self.to_out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """A stack of pre-norm blocks without a final norm; block i is the pair `layers.i.0`, `layers.i.1`."""

    def __init__(self, width: int, depth: int, heads: int, head_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Residual(PreNorm(width, Attention(width, heads, head_width, dropout))),
                    Residual(PreNorm(width, FeedForward(width, hidden, dropout))),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class FaceTransformer(nn.Module):
    """model(images) -> [N, D] embeddings; model(images, labels) -> [N, C] logits with the head's margin.

    Images are [N, 3, S, S] in 0..1. Logits without margin are `model.head(model(images))`.

    Args:
        num_classes: rows of the head; 0 means no head, embeddings only.
        head: "cosface", "arcface", "sface" or "softmax".
        overlap: patches that reach `overlap` pixels into their neighbours on each side: 0 is ViT-P8S8, 2 with
            patch_size 12 is ViT-P12S8.

    Parameter names are those of the published files, where the head is called `loss`.

    Source: Zhong and Deng, 2021, arXiv:2103.14803.
    """

    def __init__(
        self,
        num_classes: int = 100,
        head: str = "cosface",
        depth: int = 6,
        image_size: int = 112,
        patch_size: int = 8,
        overlap: int = 0,
        width: int = 512,
        num_heads: int = 8,
        head_width: int = HEAD_WIDTH,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        stride = patch_size - 2 * overlap
        if stride < 1 or image_size % stride:
            raise UserError(f"`image_size` must be a multiple of the patch stride {stride}, got {image_size}.")
        self.patch_size, self.overlap, self.image_size = patch_size, overlap, image_size
        self.num_classes, self.width = num_classes, width
        self.patch_to_embedding = nn.Linear(3 * patch_size**2, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.randn(1, (image_size // stride) ** 2 + 1, width))
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(width, depth, num_heads, head_width, hidden, dropout)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width))
        self.loss = build_head(head, width, num_classes) if num_classes else None

    @property
    def head(self) -> nn.Module | None:
        """The classifier: head(embedding) -> logits, head(embedding, labels) -> logits with margin."""
        return self.loss

    def patches(self, images: Tensor) -> Tensor:
        """[N, P, 3 p^2] patches in raster order.

        Values run (row, column, channel) within a patch; overlapping patches, padded with zeros at the
        border, run (channel, row, column). Both as published.
        """
        p, stride = self.patch_size, self.patch_size - 2 * self.overlap
        flat = F.unfold(images, p, stride=stride, padding=self.overlap).transpose(1, 2)  # [N, P, 3 p p]
        return flat if self.overlap else flat.unflatten(2, (3, p * p)).transpose(2, 3).flatten(2)

    def tokens(self, images: Tensor) -> Tensor:
        """[N, 1 + P, D] what the blocks start from, the class token first."""
        tokens = self.patch_to_embedding(self.patches(images))
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        return self.dropout(tokens + self.pos_embedding)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.mlp_head(self.transformer(self.tokens(images))[:, 0])
        return embedding if labels is None else self.loss(embedding, labels)


def is_face(state: dict[str, Tensor]) -> bool:
    """Whether these are the keys of a Face Transformer."""
    return "patch_to_embedding.weight" in state and "transformer.layers.0.0.fn.fn.to_qkv.weight" in state


def face_arguments(state: dict[str, Tensor], head: str | None, num_heads: int | None) -> dict:
    """Arguments of `FaceTransformer` that fit a published state dict.

    Args:
        head: which margin head; without it a bias means "softmax", none "cosface" (the margin heads have
            the same keys, and only CosFace files are published).

    Raises:
        UserError: a part is missing or sizes contradict each other.
    """
    needed = ("pos_embedding", "cls_token", "transformer.layers.0.1.fn.fn.net.0.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(f"checkpoint: a Face Transformer, but `{missing[0]}` is missing.")
    width, values = state["patch_to_embedding.weight"].shape
    patch, side = math.isqrt(values // 3), math.isqrt(state["pos_embedding"].shape[1] - 1)
    overlap = 2 if patch == 12 else 0  # ViT-P12S8; a patch of 12 without overlap was never published
    inner = state["transformer.layers.0.0.fn.fn.to_qkv.weight"].shape[0] // 3
    if num_heads is None and inner % HEAD_WIDTH:
        raise UserError(f"checkpoint: attention width {inner} does not tell the number of heads; pass num_heads=N.")
    heads = num_heads or inner // HEAD_WIDTH
    rows = state["loss.weight"].shape[0] if "loss.weight" in state else 0
    return {
        "num_classes": rows,
        "head": head or ("softmax" if "loss.bias" in state else "cosface"),
        "depth": count_blocks(state, r"transformer\.layers\.(\d+)\."),
        "image_size": side * (patch - 2 * overlap),
        "patch_size": patch,
        "overlap": overlap,
        "width": width,
        "num_heads": heads,
        "head_width": inner // heads,
        "hidden": state["transformer.layers.0.1.fn.fn.net.0.weight"].shape[0],
    }
