"""Where adapters can go in a model whose layers have the usual names: feed-forward nets and attention."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

# Two linear layers with a nonlinearity between them, in transformers, timm, torchvision and DETR's descendants.
FFN = re.compile(
    r"(^|\.)(fc[12]|linear[12]|pwconv[12]|dense[12]|(up|gate|down)_proj|weights_(in|out)|intermediate\.dense"
    r"|(?<!attention\.)output\.dense"
    r"|(mlp|net)\.[03])$"  # torchvision, the Face Transformer
)
ATTENTION = re.compile(
    r"(_proj|\.(query|key|value|in_proj)|(attn|attention)\.(qkv|proj|out)|attention\.output\.dense|to_qkv|to_out\.0)$"
)


def positions(model: nn.Module, leave_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """Position ("ffn", "attention") -> names of the layers there, for `inject`.

    An nn.MultiheadAttention stands for its projections.

    Args:
        leave_out: parts of names of layers that are not adapted.
    """
    found: dict[str, list[str]] = {"ffn": [], "attention": []}
    whole = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    for name, module in model.named_modules():
        if any(part in name for part in leave_out) or name.rpartition(".")[0] in whole:
            continue
        if name in whole:
            found["attention"].append(name)
        elif isinstance(module, nn.Linear) and FFN.search(name):
            found["ffn"].append(name)
        elif isinstance(module, nn.Linear) and ATTENTION.search(name):
            found["attention"].append(name)
    return found
