"""Checkpoints in the published layout, which the original code loads."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.domain import ClassTable
from common.lora import adapters
from common.record import save_tensors
from ks_detection.models.parts.swin import WindowAttention

_ADAPTER = ("lora_A", "lora_B", "past_A", "past_B")


def published_state(model: nn.Module, merge: bool = True) -> dict[str, Tensor]:
    """All tensors under the published names, tied copies and Swin's index buffers included.

    Args:
        merge: fold adapters into their weights; otherwise they are kept as `lora_A`, `lora_B`.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, layer in adapters(model).items():
        for leaf in _ADAPTER if merge else _ADAPTER[2:]:
            state.pop(f"{name}.{leaf}", None)
        if merge:
            state[f"{name}.weight"] = layer.base_weight().detach() + layer.delta().detach()
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            state[f"{name}.relative_position_index"] = module.relative_position_index
    return model.layout.to_published(state, model.config)


def export_official(
    model: nn.Module, path: str | Path, classes: ClassTable | None = None, *, half: bool = False
) -> Path:
    """Writes {"model", "config", "classes"} with adapters merged; returns the path.

    The original reads `model`; `load_checkpoint` also reads config and class table, so that a
    reloaded model needs no further word about what it is. `half` stores floats in float16, read back as float32.
    """
    classes = classes or model.class_table
    content = {
        "model": _once(published_state(model), half),
        "config": model.config.to_dict() | {"lora_rank": 0},
    }
    if classes is not None:
        content["classes"] = {"names": list(classes.names), "ids": list(classes.ids)}
    save_tensors(Path(path), content)
    return Path(path)


def _once(state: dict[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Tensors moved to the CPU once per memory, so that tied copies stay tied in the file."""
    moved: dict[int, Tensor] = {}
    for tensor in state.values():
        kind = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        moved.setdefault(tensor.data_ptr(), tensor.to("cpu", kind, copy=True))
    return {name: moved[tensor.data_ptr()] for name, tensor in state.items()}
