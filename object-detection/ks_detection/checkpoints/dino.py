"""Checkpoints of DINO: published key names <-> ours, and the config that keys and shapes tell.

Ours hold every shared tensor once; the published files hold copies.
"""

import re

from torch import Tensor

from ks_detection.checkpoints.shapes import WHAT, WHOLE, count, fold, get, points, pyramid
from ks_detection.models.dino.config import DinoConfig

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


def is_own(state: dict[str, Tensor]) -> bool:
    """Whether these are keys of a DINO."""
    return "label_enc.weight" in state


def to_ours(state: dict[str, Tensor], config: DinoConfig | None = None) -> dict[str, Tensor]:
    """The state under our names, tied copies folded into one.

    Raises:
        UserError: copies that should be one tensor differ (a model trained with unshared heads).
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.endswith(_BUILT):
            fold(ours, our_name(name), tensor, name, "heads must be shared by all layers.")
    return ours


def to_published(state: dict[str, Tensor], config: DinoConfig) -> dict[str, Tensor]:
    """The state under the published names; copies share memory, so a file stores them once."""
    return {name: tensor for mine, tensor in state.items() for name in published_names(mine, config.dec_layers)}


def infer_config(state: dict[str, Tensor]) -> DinoConfig:
    """Backbone, levels, classes, queries, depths, widths and LoRA rank of a state under our names.

    Raises:
        UserError: a key that must be there is missing, or the backbone is not one that shapes can tell.
    """
    common = pyramid(state, "", "class_embed.weight", WHAT, WHOLE)
    levels = common["num_feature_levels"]
    return DinoConfig(
        **common,
        dn_labelbook_size=get(state, "label_enc.weight").shape[0] - 1,
        dim_feedforward=get(state, "transformer.encoder.layers.0.linear1.weight").shape[0],
        enc_layers=count(state, r"transformer\.encoder\.layers\.(\d+)\.norm1\.weight"),
        dec_layers=count(state, r"transformer\.decoder\.layers\.(\d+)\.norm1\.weight"),
        enc_n_points=points(state, "transformer.encoder.layers.0.self_attn", levels),
        dec_n_points=points(state, "transformer.decoder.layers.0.cross_attn", levels),
        num_queries=get(state, "transformer.tgt_embed.weight").shape[0],
    )
