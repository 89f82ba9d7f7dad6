"""Published key names <-> ours. Ours hold every shared tensor once; the published files hold copies."""

import re

import torch
from torch import Tensor

from common.errors import UserError

_SHARED = re.compile(r"^(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.\d+\.")
_SELECTION = re.compile(r"^transformer\.(enc_output|enc_out)")
_BUILT = ("relative_position_index", "num_batches_tracked")  # made by the model itself


def our_name(name: str) -> str:
    """The name under which our model keeps a published tensor."""
    name = _SHARED.sub(r"\1.", name)
    name = _SELECTION.sub(r"transformer.selection.\1", name)
    return re.sub(r"^backbone\.0\.", "backbone.", name)


def published_names(name: str, decoder_layers: int) -> list[str]:
    """All names under which the published model keeps one of our tensors."""
    head, _, rest = name.partition(".")
    if head in ("class_embed", "bbox_embed"):
        copies = [f"{head}.{layer}.{rest}" for layer in range(decoder_layers)]
        return [f"transformer.decoder.{copy}" for copy in copies] + copies
    if name.startswith("transformer.selection."):
        return ["transformer." + name.removeprefix("transformer.selection.")]
    return [f"backbone.0.{rest}"] if head == "backbone" else [name]


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under our names, tied copies folded into one.

    Raises:
        UserError: copies that should be one tensor differ (a model trained with unshared heads).
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_BUILT):
            continue
        mine = our_name(name)
        if mine in ours and not _same(ours[mine], tensor):
            raise UserError(
                f"checkpoint: the copies of `{mine}` differ (`{name}`); heads must be shared by all layers."
            )
        ours[mine] = tensor
    return ours


def to_published(state: dict[str, Tensor], decoder_layers: int) -> dict[str, Tensor]:
    """The state under the published names; copies share memory, so a file stores them once."""
    return {name: tensor for mine, tensor in state.items() for name in published_names(mine, decoder_layers)}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.shape == b.shape and torch.equal(a, b))
