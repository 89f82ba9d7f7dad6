"""Which parameter of our model stands under which name in a detectron2 checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from ks_segmentation.models.mask2former.architecture import RESNET_DEPTHS

ROOT = "network."
BACKBONE = "model.pixel_level_module.encoder."
DECODER = "model.pixel_level_module.decoder."
QUERIES = "model.transformer_module."
HEAD, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

Pair = tuple[str, tuple[str, ...]]  # detectron2's name, ours; several of ours lie one after another in it

# transformers before 5 and files on the Hub -> the names transformers 5 has in memory
_NEWER = (
    (re.compile(r"(pixel_level_module\.encoder\.)(embeddings\.|encoder\.layers\.|layernorm\.)"), r"\1swin.\2"),
    (re.compile(r"\.attention\.self\.(query|key|value)\."), lambda m: f".attention.{m.group(1)[0]}_proj."),
    (re.compile(r"\.attention\.self\.relative_position_"), ".attention.relative_position_bias.relative_position_"),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"(\.blocks\.\d+)\.intermediate\.dense\."), r"\1.mlp.fc1."),
    (re.compile(r"(\.blocks\.\d+)\.output\.dense\."), r"\1.mlp.fc2."),
    (re.compile(r"(pixel_level_module\.encoder\.)hidden_states_norms\.(\d)\."), r"\1hidden_states_norms.stage\2."),
)


def newest(name: str) -> str:
    """The name that transformers 5 gives in memory to what `name` names in any version or file."""
    for pattern, new in _NEWER:
        name = pattern.sub(new, name)
    return name


def key_map(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """detectron2's name -> the names of our state dict whose rows it stacks (q, k and v, or just one).

    Covers every parameter and statistic of the model; adapters lie beside the layer they adapt.
    """
    actual = {newest(name.removeprefix(ROOT)): name for name in model.state_dict() if name.startswith(ROOT)}
    found = {}
    for theirs, ours in _pairs(model):
        if all(name in actual for name in ours):
            found[theirs] = tuple(actual[name] for name in ours)
    return found


def _leaves(theirs: str, ours: str, names: tuple[str, ...] = ("weight", "bias")) -> Iterator[Pair]:
    for leaf in names:
        yield f"{theirs}.{leaf}", (f"{ours}.{leaf}",)


def _pairs(model: nn.Module) -> Iterator[Pair]:
    config = model.config.MODEL
    if config.BACKBONE.NAME == "D2SwinTransformer":
        yield from _swin(config.SWIN.DEPTHS)
    elif config.BACKBONE.NAME == "mobilenet_v2":
        for name in model.network.model.pixel_level_module.encoder.state_dict():
            yield f"backbone.{name}", (BACKBONE + name,)
    else:
        yield from _resnet(config.RESNETS.DEPTH)
    yield from _pixel_decoder(config.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS)
    yield from _predictor(config.MASK_FORMER.DEC_LAYERS - 1)


def _swin(depths: tuple[int, ...]) -> Iterator[Pair]:
    swin = BACKBONE + "swin."
    yield from _leaves("backbone.patch_embed.proj", swin + "embeddings.patch_embeddings.projection")
    yield from _leaves("backbone.patch_embed.norm", swin + "embeddings.norm")
    for s, depth in enumerate(depths):
        for b in range(depth):
            theirs, ours = f"backbone.layers.{s}.blocks.{b}", f"{swin}encoder.layers.{s}.blocks.{b}"
            yield from _leaves(f"{theirs}.norm1", f"{ours}.layernorm_before")
            yield from _leaves(f"{theirs}.norm2", f"{ours}.layernorm_after")
            for leaf in ("weight", "bias"):
                yield f"{theirs}.attn.qkv.{leaf}", tuple(f"{ours}.attention.{x}_proj.{leaf}" for x in "qkv")
            yield from _leaves(f"{theirs}.attn.proj", f"{ours}.attention.o_proj")
            table = "relative_position_bias_table"
            yield f"{theirs}.attn.{table}", (f"{ours}.attention.relative_position_bias.{table}",)
            for leaf in ("fc1", "fc2"):
                yield from _leaves(f"{theirs}.mlp.{leaf}", f"{ours}.mlp.{leaf}")
        theirs, ours = f"backbone.layers.{s}.downsample", f"{swin}encoder.layers.{s}.downsample"
        yield f"{theirs}.reduction.weight", (f"{ours}.reduction.weight",)
        yield from _leaves(f"{theirs}.norm", f"{ours}.norm")
        yield from _leaves(f"backbone.norm{s}", f"{BACKBONE}hidden_states_norms.stage{s + 1}")


def _convolution(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}.weight", (f"{ours}.convolution.weight",)
    yield from _leaves(
        f"{theirs}.norm",
        f"{ours}.normalization",
        ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    )


def _resnet(depth: int) -> Iterator[Pair]:
    depths, kind = RESNET_DEPTHS[depth]
    yield from _convolution("backbone.stem.conv1", BACKBONE + "embedder.embedder")
    for stage, blocks in enumerate(depths):
        for b in range(blocks):
            theirs, ours = f"backbone.res{stage + 2}.{b}", f"{BACKBONE}encoder.stages.{stage}.layers.{b}"
            yield from _convolution(f"{theirs}.shortcut", f"{ours}.shortcut")
            for c in range(3 if kind == "bottleneck" else 2):
                yield from _convolution(f"{theirs}.conv{c + 1}", f"{ours}.layer.{c}")


def _pixel_decoder(layers: int) -> Iterator[Pair]:
    for level in range(3):
        for part in range(2):
            yield from _leaves(f"{HEAD}input_proj.{level}.{part}", f"{DECODER}input_projections.{level}.{part}")
    yield f"{HEAD}transformer.level_embed", (f"{DECODER}level_embed",)
    for i in range(layers):
        theirs, ours = f"{HEAD}transformer.encoder.layers.{i}", f"{DECODER}encoder.layers.{i}"
        for leaf in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            yield from _leaves(f"{theirs}.self_attn.{leaf}", f"{ours}.self_attn.{leaf}")
        yield from _leaves(f"{theirs}.norm1", f"{ours}.self_attn_layer_norm")
        yield from _leaves(f"{theirs}.linear1", f"{ours}.fc1")
        yield from _leaves(f"{theirs}.linear2", f"{ours}.fc2")
        yield from _leaves(f"{theirs}.norm2", f"{ours}.final_layer_norm")
    for name in ("adapter_1", "layer_1"):
        yield f"{HEAD}{name}.weight", (f"{DECODER}{name}.0.weight",)
        yield from _leaves(f"{HEAD}{name}.norm", f"{DECODER}{name}.1")
    yield from _leaves(f"{HEAD}mask_features", f"{DECODER}mask_projection")


def _predictor(layers: int) -> Iterator[Pair]:
    for i in range(layers):
        ours = f"{QUERIES}decoder.layers.{i}"
        theirs = f"{PREDICTOR}transformer_self_attention_layers.{i}"
        for leaf in ("weight", "bias"):
            yield f"{theirs}.self_attn.in_proj_{leaf}", tuple(f"{ours}.self_attn.{x}_proj.{leaf}" for x in "qkv")
        yield from _leaves(f"{theirs}.self_attn.out_proj", f"{ours}.self_attn.out_proj")
        yield from _leaves(f"{theirs}.norm", f"{ours}.self_attn_layer_norm")
        theirs = f"{PREDICTOR}transformer_cross_attention_layers.{i}"
        for leaf in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
            yield f"{theirs}.multihead_attn.{leaf}", (f"{ours}.cross_attn.{leaf}",)
        yield from _leaves(f"{theirs}.norm", f"{ours}.cross_attn_layer_norm")
        theirs = f"{PREDICTOR}transformer_ffn_layers.{i}"
        yield from _leaves(f"{theirs}.linear1", f"{ours}.fc1")
        yield from _leaves(f"{theirs}.linear2", f"{ours}.fc2")
        yield from _leaves(f"{theirs}.norm", f"{ours}.final_layer_norm")
    yield from _leaves(f"{PREDICTOR}decoder_norm", f"{QUERIES}decoder.layernorm")
    yield f"{PREDICTOR}query_feat.weight", (f"{QUERIES}queries_features.weight",)
    yield f"{PREDICTOR}query_embed.weight", (f"{QUERIES}queries_embedder.weight",)
    yield f"{PREDICTOR}level_embed.weight", (f"{QUERIES}level_embed.weight",)
    for level in range(3):  # only where the widths differ or the config asks for them
        yield from _leaves(f"{PREDICTOR}input_proj.{level}", f"{QUERIES}input_projections.{level}")
    yield from _leaves(f"{PREDICTOR}class_embed", "class_predictor")
    for k in range(3):
        yield from _leaves(f"{PREDICTOR}mask_embed.layers.{k}", f"{QUERIES}decoder.mask_predictor.mask_embedder.{k}.0")
