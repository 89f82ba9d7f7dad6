"""A ViT as stages that are run one after the other: its embedding, then attention and feed-forward net of each block.

The first ones may be left to a cache. In the last block only the class token is computed, where nothing else is read.
Answers are those of the model itself, up to rounding; models of other kinds, and models with hooks inside their blocks,
are run as they are. Hooks that read a block's output alone (`common.features`) are told it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common import frozen
from common.features import Keeper, keepers
from common.layers import Linear, channels_last, fast, feed_forward, heads_of, linear
from common.layers import attention as attend
from ks_classification.models import layers
from ks_classification.models.face import FaceTransformer
from ks_classification.models.hybrid import FrozenStem

WORTH = 4  # at least this share of the stages, one in four, must be constant for their outputs to be kept


class Stage(NamedTuple):
    """What a stage reads, and run(x, first): x with its output; only the first token of it where `first` is set.

    keepers: hooks of the block that ends here.
    """

    parts: frozen.Part
    run: Callable[[Tensor, bool], Tensor]
    keepers: Sequence[Keeper] = ()


class Chain(NamedTuple):
    """The stages; from number `narrow` on only the first token is read; `embedding` makes of it what the head reads."""

    stages: list[Stage]
    narrow: int
    embedding: Callable[[Tensor], Tensor]

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """The output of the stages `first` up to `last` (not included)."""
        x = channels_last(x)
        for number in range(first, last):
            stage = self.stages[number]
            x = stage.run(x, number >= self.narrow and not self.stages[-1].keepers)
            for keeper in stage.keepers:
                keeper(x)
        return x

    def kept(self, count: int) -> int:
        """How many of `count` leading stages that never change are to be kept: none behind the first to which a hook
        listens, and 0 where they are too few."""
        count = next((number for number, stage in enumerate(self.stages[:count]) if stage.keepers), count)
        stem = any(isinstance(part, FrozenStem) for part in self.stages[0].parts)
        if stem and WORTH * (count - 2) < len(self.stages) - 2:
            return min(count, 1)  # behind it little would be saved; so all models on this stem share what is kept
        return count if WORTH * count >= len(self.stages) else 0


def chain(model: nn.Module) -> Chain | None:
    """The stages of a model, or None where it is to be run as it is."""
    find = next(
        (make for kind, make in KINDS.items() if f"{type(model).__module__}.{type(model).__name__}" == kind), None
    )
    return find(model) if find is not None and fast is not None else None


def constant(model: nn.Module) -> int:
    """How many leading stages never change, or 0 where they are too few to be kept."""
    found = chain(model)
    if found is None:
        return 0
    return found.kept(frozen.constant(model, [stage.parts for stage in found.stages]))


def forward(model: nn.Module, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
    """(logits [B, C], embedding [B, D]); the embedding is what the classifier reads.

    Args:
        x: images [B, 3, S, S], or what the first `start` stages gave for them.
    """
    found = chain(model)
    if found is None:
        return layers.forward(model, x)
    embedding = found.embedding(found.run(x, start, len(found.stages)))
    return layers.classifier(model)(embedding), embedding


def _plain(module: nn.Module, blocks: Iterable[nn.Module]) -> bool:
    """Whether nothing listens to what goes on inside a module; `keepers` of its blocks' outputs may."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    return hooks == sum(len(keepers(block)) for block in blocks)


# ---- timm ----------------------------------------------------------------------------------------------------


def _timm(model: nn.Module) -> Chain | None:
    from timm.layers import Mlp
    from timm.models.vision_transformer import Attention, Block

    parts = (Block, Attention, Mlp)
    usual = all((type(b), type(b.attn), type(b.mlp)) == parts for b in model.blocks)
    if not usual or not _plain(model.blocks, model.blocks) or model.attn_pool is not None or model.grad_checkpointing:
        return None
    tokens = [p for p in (model.cls_token, model.reg_token, model.pos_embed) if p is not None]
    around = (model.patch_embed, model.pos_drop, model.patch_drop, model.norm_pre, *tokens)
    stages = [Stage(around, lambda x, first: _timm_tokens(model, x))]
    stem = getattr(model.patch_embed, "backbone", None)
    if isinstance(stem, FrozenStem):
        stages.insert(0, Stage((stem,), lambda x, first: stem(x)))
    for block in model.blocks:
        attention, feeding = (
            (block.norm1, block.attn, block.ls1, block.drop_path1),
            (block.norm2, block.mlp, block.ls2, block.drop_path2),
        )
        stages.append(Stage(attention, partial(_timm_attend, block)))
        stages.append(Stage(feeding, partial(_timm_feed, block), keepers(block)))
    narrow = len(stages) - 2 if model.global_pool == "token" else len(stages)
    return Chain(stages, narrow, lambda x: model.forward_head(model.norm(x), pre_logits=True))


def _timm_tokens(model: nn.Module, images: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _timm_attend(block: nn.Module, x: Tensor, first: bool) -> Tensor:
    attention, tokens = block.attn, block.norm1(x)
    known = attention.gate is None and attention.fused_attn
    out = _attention_of_timm(attention, tokens, first) if known else attention(tokens)
    return (x[:, :1] + block.drop_path1(block.ls1(out[:, :1]))) if first else x + block.drop_path1(block.ls1(out))


def _attention_of_timm(attention: nn.Module, x: Tensor, first: bool) -> Tensor:
    """What timm's attention gives: [B, T, D], or [B, 1, D] for the first token alone."""
    width = attention.attn_dim
    projected = _first_query(attention.qkv, x, width) if first else attention.qkv(x).split(width, dim=-1)
    q, k, v = (heads_of(t, attention.num_heads) for t in projected)
    q, k = attention.q_norm(q), attention.k_norm(k)
    out = attend(q, k, v, dropout=attention.attn_drop.p if attention.training else 0.0)
    return attention.proj_drop(attention.proj(attention.norm(out.transpose(1, 2).flatten(2))))


def _timm_feed(block: nn.Module, x: Tensor, first: bool) -> Tensor:
    mlp, tokens = block.mlp, block.norm2(x)
    drops = mlp.training and (mlp.drop1.p or mlp.drop2.p)
    exact = type(mlp.act) is nn.GELU and mlp.act.approximate == "none" and type(mlp.norm) is nn.Identity
    out = feed_forward(tokens, mlp.fc1, mlp.fc2, "gelu") if exact and not drops else mlp(tokens)
    return x + block.drop_path2(block.ls2(out))


def _first_query(layer: nn.Module, x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The query [B, 1, W] of the first token, keys and values [B, T, W] of all, from a packed projection."""
    if type(layer) not in (nn.Linear, Linear):  # an adapted one
        q, k, v = layer(x).split(width, dim=-1)
        return q[:, :1], k, v
    bias = layer.bias
    q = linear(x[:, :1], layer.weight[:width], None if bias is None else bias[:width])
    k, v = linear(x, layer.weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    return q, k, v


# ---- torchvision ---------------------------------------------------------------------------------------------


def _torchvision(model: nn.Module) -> Chain | None:
    encoder = model.encoder
    if not _plain(encoder, encoder.layers):
        return None

    def tokens(images: Tensor, first: bool) -> Tensor:
        patches = model._process_input(images)
        joined = torch.cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return encoder.dropout(joined + encoder.pos_embedding)

    stages = [Stage((model.conv_proj, model.class_token, encoder.pos_embedding, encoder.dropout), tokens)]
    for block in encoder.layers:
        stages.append(Stage((block.ln_1, block.self_attention, block.dropout), partial(_torchvision_attend, block)))
        feed = lambda x, first, block=block: x + block.mlp(block.ln_2(x))  # noqa: E731
        stages.append(Stage((block.ln_2, block.mlp), feed, keepers(block)))
    return Chain(stages, len(stages) - 2, lambda x: model.heads[:-1](encoder.ln(x)[:, 0]))


def _torchvision_attend(block: nn.Module, x: Tensor, first: bool) -> Tensor:
    tokens = block.ln_1(x)
    asking, x = (tokens[:, :1], x[:, :1]) if first else (tokens, x)
    out, _ = block.self_attention(asking, tokens, tokens, need_weights=False)
    return x + block.dropout(out)


# ---- Face Transformer ----------------------------------------------------------------------------------------


def _face(model: nn.Module) -> Chain | None:
    if not _plain(model.transformer, model.transformer.layers) or model.head is None:
        return None
    stages = [Stage((model.patch_to_embedding, model.cls_token, model.pos_embedding, model.dropout),
                    lambda x, first: model.tokens(x))]  # fmt: skip
    for block in model.transformer.layers:
        attention, feeding = block
        stages.append(Stage((attention,), partial(_face_attend, attention)))
        stages.append(Stage((feeding,), lambda x, first, feeding=feeding: feeding(x), keepers(block)))
    return Chain(stages, len(stages) - 2, lambda x: model.mlp_head(x[:, 0]))


def _face_attend(residual: nn.Module, x: Tensor, first: bool) -> Tensor:
    if not first:
        return residual(x)
    attention, tokens = residual.fn.fn, residual.fn.norm(x)
    width = attention.to_out[0].in_features
    q, k, v = (heads_of(t, attention.heads) for t in _first_query(attention.to_qkv, tokens, width))
    out = attend(q, k, v, scale=attention.scale)
    return x[:, :1] + attention.to_out(out.transpose(1, 2).flatten(2))


KINDS: dict[str, Callable[[nn.Module], Chain | None]] = {  # subclasses may compute something else
    "timm.models.vision_transformer.VisionTransformer": _timm,
    "torchvision.models.vision_transformer.VisionTransformer": _torchvision,
    f"{FaceTransformer.__module__}.{FaceTransformer.__name__}": _face,
}
