"""Writes our Mask2Former, adapters merged, as a detectron2 checkpoint."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import user_path
from common.lora import adapters
from common.record import save_tensors, write_bytes
from ks_segmentation.checkpoints.key_map import key_map

# These two of detectron2's modules take weights without a version for files of the first layout, and rename them.
VERSIONS = {"sem_seg_head": 2, "sem_seg_head.predictor": 2}


@torch.no_grad()
def detectron2_state(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The weights under detectron2's names, adapters merged into copies; the model is left as it is.

    The versions of the modules stand in its attribute `_metadata`, where torch's `load_state_dict` looks for them.
    """
    own = dict(model.state_dict())
    for name, adapter in adapters(model).items():
        leaf = "in_proj_weight" if hasattr(adapter, "in_proj_weight") else "weight"
        own[f"{name}.{leaf}"] = adapter.base_weight() + adapter.delta().to(adapter.base_weight().dtype)
    state = {
        theirs: torch.cat([own[name] for name in ours]) if len(ours) > 1 else own[ours[0]].clone()
        for theirs, ours in key_map(model).items()
    }
    state |= _window_indices(model)
    weight = torch.ones(model.num_classes + 1)
    weight[-1] = model.config.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
    state["criterion.empty_weight"] = weight
    return _versioned({key: value.detach().cpu().contiguous() for key, value in state.items()})


def _versioned(state: Mapping[str, Any]) -> OrderedDict[str, Any]:
    made = OrderedDict(state)
    made._metadata = OrderedDict((name, {"version": version}) for name, version in VERSIONS.items())
    return made


def _window_indices(model: nn.Module) -> dict[str, Tensor]:
    """The index buffers that a Swin keeps in its checkpoints: entry (i, j) names the offset from cell j to i."""
    config = model.config.MODEL
    if config.BACKBONE.NAME != "D2SwinTransformer":
        return {}
    side = config.SWIN.WINDOW_SIZE
    cell = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)  # [2, side^2]
    offset = cell[:, :, None] - cell[:, None, :] + side - 1
    index = offset[0] * (2 * side - 1) + offset[1]
    return {
        f"backbone.layers.{s}.blocks.{b}.attn.relative_position_index": index.clone()
        for s, depth in enumerate(config.SWIN.DEPTHS)
        for b in range(depth)
    }


def export_detectron2(model: nn.Module, path: str | Path) -> Path:
    """Writes the checkpoint that detectron2's Mask2Former loads; returns its path.

    Args:
        path: `.pth` (tensors under `model`) or `.pkl` (numpy arrays, as in detectron2's model zoo).

    Raises:
        UserError: another ending.
    """
    path = user_path(path)
    if path.suffix not in (".pth", ".pkl"):
        raise UserError(f"an export ends in .pth or .pkl, got {path.name}.")
    state = detectron2_state(model)
    if path.suffix == ".pth":
        save_tensors(path, {"model": state})
    else:
        arrays = _versioned({key: value.numpy() for key, value in state.items()})
        content = {"model": arrays, "__author__": "knowledge-swapping", "matching_heuristics": False}
        write_bytes(path, pickle.dumps(content))
    return path
