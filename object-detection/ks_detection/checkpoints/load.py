"""A model from a checkpoint, with a clear word about everything that does not fit."""

import logging
from pathlib import Path

from torch import Tensor, nn

from common import hub
from common.bounded import Bounded
from common.errors import UserError
from common.lora import inject
from common.weights import fitted, rounded
from ks_detection.checkpoints.layouts import our_state
from ks_detection.checkpoints.read import read_checkpoint
from ks_detection.checkpoints.shapes import infer_backbone
from ks_detection.models.detectors import bare_detector, changed, config_from
from ks_detection.models.hub.files import read_detector
from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.detector import Detector

log = logging.getLogger(__name__)


def load_checkpoint(
    path_or_state: str | Path | dict,
    config: DetectorConfig | dict | None = None,
    *,
    ema: bool = False,
    changes: dict | None = None,
) -> Detector:
    """A detector in eval mode with the weights of an official, Knowledge Swapping or own checkpoint.

    Args:
        path_or_state: a file, a loaded checkpoint or a state dict, with published key names, or a folder of a detector of
            transformers.
        config: without one, the file's own config is used (files written here have it), else which detector it
            is, backbone, levels, classes, queries and LoRA rank are read off keys and shapes.
        ema: take the averaged weights (`ema_model`).
        changes: values of the config that replace those found.

    The result has `class_table` (a `ClassTable`, or None if the file has no names). Adapters keep loralib's
    scale, `lora_alpha` / rank with alpha 1, and stay adapters; `export_official` merges them.

    Raises:
        UserError: unreadable file, missing or mismatched keys, another backbone or number of classes.
    """
    if not isinstance(path_or_state, dict) and hub.is_folder(path_or_state):
        if config is not None or changes or ema:
            raise UserError(f"{path_or_state}: --config-file, --options and --ema are not for a transformers folder.")
        return read_detector(Path(path_or_state))
    checkpoint = read_checkpoint(path_or_state, ema)
    if config is None and checkpoint.config:
        config = checkpoint.config
    with fitted("checkpoint"), Bounded("the checkpoint"):
        state, config = our_state(checkpoint.state, config_from(config) if isinstance(config, dict) else config)
        config = changed(config, changes) if changes else config
        model = bare_detector(config)
        check_backbone(state, config)
    adapted = [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]
    with fitted("checkpoint"):
        if adapted:
            inject(model, adapted, state[f"{adapted[0]}.lora_A"].shape[0], config.lora_alpha)
        put_state(model, state)
    if checkpoint.classes is not None and len(checkpoint.classes) > config.num_classes:
        raise UserError(
            f"checkpoint: names {len(checkpoint.classes)} classes and has {config.num_classes} logit rows; one is wrong."
        )
    model.class_table = checkpoint.classes
    return model.eval()


def check_backbone(state: dict[str, Tensor], config: DetectorConfig) -> None:
    """Raises UserError if the checkpoint's backbone is visibly another than the config's."""
    try:
        found = infer_backbone(state)
    except UserError:
        return  # a small backbone, or a damaged file: the key report says more
    if found != config.backbone:
        raise UserError(
            f"checkpoint has backbone {found}, the config wants {config.backbone}; set `backbone` to {found}."
        )


def put_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies a state under our names into the model.

    Raises:
        UserError: naming the missing keys and mismatched shapes. Unexpected keys are logged and passed over.
    """
    own = model.state_dict()
    optional = ("past_A", "past_B", "lora_A", "lora_B")
    missing = [name for name in own if name not in state and not name.endswith(optional)]
    unexpected = [name for name in state if name not in own]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if unexpected:
        log.warning("checkpoint: %d keys are not used: %s", len(unexpected), _some(unexpected))
    head = next((name for name in wrong if name.startswith("class_embed.")), None)
    if head is not None:
        raise UserError(
            f"checkpoint has {state[head].shape[0]} classes, the config wants {own[head].shape[0]}; load it without a "
            "config and extend it with new classes."
        )
    if wrong:
        shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in wrong]
        raise UserError(f"checkpoint: {len(wrong)} tensors have another shape: {_some(shapes)}.")
    if names := rounded(own, state):
        raise UserError(f"checkpoint: {len(names)} tensors hold whole numbers, not weights: {_some(names)}.")
    if missing:
        raise UserError(f"checkpoint: {len(missing)} keys are missing: {_some(missing)}.")
    model.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
