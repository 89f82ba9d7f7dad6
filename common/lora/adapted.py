"""Which layers of a model are adapted: chosen, put on, started afresh, merged for a while, taken off."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.knobs import Checked, knob
from common.lora.attention import LoRAMultiheadAttention
from common.lora.layers import Adapter, LoRALinear
from common.sparsity import block_of


@dataclass
class LoraConfig(Checked):
    """What is adapted and how much."""

    lora_rank: int = knob(8, "rank of each adapter", least=1)
    lora_alpha: float = knob(
        0.0, "update is scaled by alpha / rank; 0 means alpha = rank (loralib's own default is 1)", least=0
    )
    lora_position: str = knob("ffn", "layers to adapt", ["ffn", "attention", "all"])
    lora_targets: str = knob("", "glob patterns of module names, comma separated; replaces --lora-position")
    lora_blocks: str = knob("", "which blocks: '0-3,8', 'first4', 'last4' or 'last1/4', a share rounded up; empty: all")
    lora_init: str = knob(
        "loralib", "A ~ kaiming uniform with a = sqrt(5) or, as published, sqrt(50)", ["loralib", "published"]
    )
    lora_between_phases: str = knob(
        "continue",
        "one adapter through all phases, or freeze it and stack a fresh one per phase",
        ["continue", "stack"],
    )

    @property
    def alpha(self) -> float:
        """The numerator of the scale."""
        return self.lora_alpha or float(self.lora_rank)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Every adapted layer of `model` by name, in depth order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def inject(
    model: nn.Module, names: Iterable[str], rank: int, alpha: float = 1.0, parts: dict[str, int] | None = None
) -> list[str]:
    """Replaces the named layers by adapted ones, in place; returns their names.

    A fresh adapter changes no output, bit for bit. nn.Linear layers become LoRALinear; nn.MultiheadAttention
    modules get adapters on their packed input projection and on their output projection. Layers named in
    `parts` are split into that many equal outputs; layers called `qkv` or `to_qkv` are split in three unasked.

    Raises:
        UserError: a name is not in the model, is no linear layer, or the rank does not fit.
    """
    done = []
    modules = dict(model.named_modules())
    for name in names:
        layer, leaf = modules.get(name), name.rpartition(".")[2]
        if layer is None:
            raise UserError(f"the model has no layer `{name}`.")
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Adapter):
            raise UserError(f"layer `{name}` has an adapter already.")
        if isinstance(parent, nn.MultiheadAttention):
            raise UserError(f"`{name}` is read by torch's attention, not run; name {name.rpartition('.')[0]} instead.")
        if isinstance(layer, nn.MultiheadAttention):
            new: Adapter = LoRAMultiheadAttention(layer, rank, alpha)
        elif isinstance(layer, nn.Linear):
            split = (parts or {}).get(name, 3 if leaf in ("qkv", "to_qkv") else 1)
            new = LoRALinear(layer, rank, alpha, split)
        else:
            raise UserError(f"`{name}` is a {type(layer).__name__}; adapters go on linear layers.")
        setattr(parent, leaf, new)
        _unfuse(parent)
        done.append(name)
    return done


def _unfuse(parent: nn.Module) -> None:
    """Torch's fused encoder layer reads its parts' weights itself, so that adapters would be passed by."""
    if isinstance(parent, nn.TransformerEncoderLayer) and parent.activation_relu_or_gelu:
        parent.fused_activation = parent.activation_relu_or_gelu  # type: ignore[assignment]  # torch expects a module
        parent.activation_relu_or_gelu = 0


def put_back(model: nn.Module, name: str, weight: Tensor) -> None:
    """Replaces an adapted layer by the plain layer it was, with this weight; inner layers go first."""
    parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    setattr(parent, leaf, getattr(parent, leaf).unadapted(weight))
    if hasattr(parent, "fused_activation") and not adapters(parent):
        parent.activation_relu_or_gelu = parent.fused_activation
        del parent.fused_activation


def select(available: dict[str, list[str]], config: LoraConfig, model: nn.Module) -> list[str]:
    """The module names that `config` asks for, in depth order.

    Args:
        available: position ("ffn", "attention") -> module names, as a domain gives them.
        model: searched by name when `lora_targets` holds patterns.

    Raises:
        UserError: nothing fits; says what there is.
    """
    if config.lora_targets:
        kinds = (nn.Linear, nn.MultiheadAttention)
        inner = {f"{n}.out_proj" for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
        linear = [n for n, m in model.named_modules() if isinstance(m, kinds) and n not in inner]
        patterns = [p.strip() for p in config.lora_targets.split(",")]
        names = [n for n in linear if any(fnmatch.fnmatch(n, p) for p in patterns)]
        if not names:
            raise UserError(
                f"`--lora-targets {config.lora_targets}` matches no linear layer; the first are {', '.join(linear[:5])}."
            )
    else:
        positions = list(available) if config.lora_position == "all" else [config.lora_position]
        names = list(dict.fromkeys(name for position in positions for name in available.get(position, [])))
        if not names:
            raise UserError(
                f"this model has no layers at `--lora-position {config.lora_position}`; "
                f"it has: {', '.join(k for k, v in available.items() if v)}."
            )
    depth = {name: i for i, (name, _) in enumerate(model.named_modules())}
    names = sorted(names, key=depth.__getitem__)
    return pick_blocks(names, config.lora_blocks) if config.lora_blocks else names


def pick_blocks(names: list[str], text: str) -> list[str]:
    """The names whose block is chosen by `text`: '0-3,8', 'first4', 'last4' or 'last1/4', counted in depth order."""
    blocks = list(dict.fromkeys(block_of(name) for name in names))
    error = UserError(
        f"`--lora-blocks {text}` must look like '0-3,8', 'first4', 'last4' or 'last1/4' with blocks 0-{len(blocks) - 1}."
    )
    try:
        if text.startswith("first"):
            chosen = set(range(_count(text[5:], len(blocks))))
        elif text.startswith("last"):
            chosen = set(range(len(blocks) - _count(text[4:], len(blocks)), len(blocks)))
        else:
            chosen = set()
            for piece in text.split(","):
                low, _, high = piece.partition("-")
                chosen |= set(range(int(low), int(high or low) + 1))
    except (ValueError, ZeroDivisionError):
        raise error from None
    if not chosen or not chosen <= set(range(len(blocks))):
        raise error
    wanted = {blocks[i] for i in chosen}
    return [name for name in names if block_of(name) in wanted]


def _count(text: str, blocks: int) -> int:
    """'3' is 3; '1/4' is a quarter of the blocks, rounded up."""
    top, _, bottom = text.partition("/")
    return -(-int(top) * blocks // int(bottom)) if bottom else int(top)


def fresh(model: nn.Module, config: LoraConfig, seed: int, stack: bool = False) -> None:
    """(Re-)initialises every adapter from `seed` alone, so that all ranks hold the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    a = math.sqrt(50 if config.lora_init == "published" else 5)
    for adapter in adapters(model).values():
        (adapter.stack if stack else adapter.reset)(generator, a)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every adapted layer runs as one plain layer with W + scale B A; W itself is not written to."""
    layers = list(adapters(model).values())
    with torch.no_grad():
        for layer in layers:
            layer.merged = layer.base_weight() + layer.delta().to(layer.base_weight().dtype)
    try:
        yield model
    finally:
        for layer in layers:
            layer.merged = None
