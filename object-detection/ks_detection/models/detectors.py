"""The detectors there are, by the `modelname` of their configs; another one is a folder beside these and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.lora import inject
from ks_detection.models.deformable_detr.config import DeformableConfig
from ks_detection.models.deformable_detr.criterion import DeformableCriterion
from ks_detection.models.deformable_detr.model import DeformableDetr
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.criterion import Criterion
from ks_detection.models.dino.model import Dino
from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.config_file import read_config
from ks_detection.models.parts.criterion import SetCriterion
from ks_detection.models.parts.detector import Detector, ffn_linears


class Kind(NamedTuple):
    """A detector: its constants, its network with fresh weights, and its loss."""

    config: type[DetectorConfig]
    network: Callable[[Any], Detector]
    criterion: Callable[[Any], SetCriterion]


KINDS = {
    "dino": Kind(DinoConfig, Dino, Criterion),
    "deformable_detr": Kind(DeformableConfig, DeformableDetr, DeformableCriterion),
}


def config_from(values: Mapping[str, Any]) -> DetectorConfig:
    """The config that a dictionary describes; `modelname` chooses the detector, DINO where it is missing.

    Raises:
        UserError: another detector, or values that cannot be built.
    """
    name = values.get("modelname", "dino")
    if name not in KINDS:
        raise UserError(f"config: `modelname` is {name!r}; allowed: {', '.join(KINDS)}.")
    return KINDS[name].config.from_dict(values)


def changed(config: DetectorConfig, changes: Mapping[str, Any]) -> DetectorConfig:
    """The config with other values.

    Raises:
        UserError: a name that it does not have, or a value that cannot be built.
    """
    result = config_from({**config.to_dict(), **changes})
    strangers = [name for name in changes if name not in result.to_dict()]
    if strangers:
        raise UserError(
            f"--options: a {config.modelname} has no `{strangers[0]}`; it has: {', '.join(result.to_dict())}."
        )
    return result


def bare_detector(config: DetectorConfig) -> Detector:
    """A detector with fresh weights and without adapters."""
    return KINDS[config.modelname].network(config)


def build_detector(config: DetectorConfig | Mapping[str, Any] | str | Path) -> Detector:
    """A detector with fresh weights; with `lora_rank` above 0 adapters sit on every FFN linear, base frozen.

    Args:
        config: a config, a published config file, or the dictionary that `read_config` makes of one.
    """
    values = read_config(config) if isinstance(config, str | Path) else config
    model = bare_detector(values if isinstance(values, DetectorConfig) else config_from(values))
    if model.config.lora_rank:
        inject(model, ffn_linears(model), model.config.lora_rank, model.config.lora_alpha)
    return model


def build_dino(config: DinoConfig | Mapping[str, Any] | str | Path) -> Detector:
    """`build_detector` for a DINO: a `DinoConfig`, a published config file, or its values; `modelname` is not read."""
    values = read_config(config) if isinstance(config, str | Path) else config
    return build_detector(values if isinstance(values, DinoConfig) else DinoConfig.from_dict(values))


def criterion_for(config: DetectorConfig) -> SetCriterion:
    """The loss of a detector."""
    return KINDS[config.modelname].criterion(config)
