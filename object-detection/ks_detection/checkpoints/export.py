"""Checkpoints in the published layout, which the original code loads."""

from pathlib import Path

from torch import Tensor, nn

from common.domain import ClassTable
from common.lora import adapters
from common.record import save_tensors
from ks_detection.checkpoints.names import to_published
from ks_detection.dino.swin import WindowAttention

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
    return to_published(state, model.config.dec_layers)


def export_official(model: nn.Module, path: str | Path, classes: ClassTable | None = None) -> Path:
    """Writes {"model", "config", "classes"} with adapters merged; returns the path.

    The original reads `model`; `load_checkpoint` also reads config and class table, so that a
    reloaded model needs no further word about what it is.
    """
    classes = classes or getattr(model, "class_table", None)
    content = {
        "model": {name: tensor.cpu() for name, tensor in _once(published_state(model)).items()},
        "config": model.config.to_dict() | {"lora_rank": 0},
    }
    if classes is not None:
        content["classes"] = {"names": list(classes.names), "ids": list(classes.ids)}
    save_tensors(Path(path), content)
    return Path(path)


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors moved to the CPU once per memory, so that tied copies stay tied in the file."""
    moved: dict[int, Tensor] = {}
    for tensor in state.values():
        moved.setdefault(tensor.data_ptr(), tensor.cpu().clone())
    return {name: moved[tensor.data_ptr()] for name, tensor in state.items()}
