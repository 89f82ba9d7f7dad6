"""One file or folder of `models/` per detector; its name is the `modelname` of its configs. There is no registry to edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.bounded import Bounded
from common.errors import UserError
from common.lora import inject
from common.plugins import Plugins
from ks_detection import models
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.config_file import read_config
from ks_detection.models.parts.detector import Detector, ffn_linears

REFUSAL = "config: `modelname` is {name!r}; allowed: {known}."
_DETECTORS = Plugins(models, "DETECTOR", REFUSAL, ("parts", "detectors"))
available, detector_type = _DETECTORS.available, _DETECTORS.load


def config_from(values: Mapping[str, Any]) -> DetectorConfig:
    """The config that a dictionary describes; `modelname` chooses the detector, DINO where it is missing.

    Raises:
        UserError: another detector, or values that cannot be built.
    """
    return detector_type(values.get("modelname", "dino")).config_type.from_dict(values)


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
    return detector_type(config.modelname)(config)


def build_detector(config: DetectorConfig | Mapping[str, Any] | str | Path) -> Detector:
    """A detector with fresh weights; with `lora_rank` above 0 adapters sit on every FFN linear, base frozen.

    Args:
        config: a config, a published config file, or the dictionary that `read_config` makes of one.
    """
    values = read_config(config) if isinstance(config, str | Path) else config
    with Bounded("the detector's config"):
        model = bare_detector(values if isinstance(values, DetectorConfig) else config_from(values))
    if model.config.lora_rank:
        inject(model, ffn_linears(model), model.config.lora_rank, model.config.lora_alpha)
    return model


def build_dino(config: DinoConfig | Mapping[str, Any] | str | Path) -> Detector:
    """`build_detector` for a DINO: a `DinoConfig`, a published config file, or its values; `modelname` is not read."""
    values = read_config(config) if isinstance(config, str | Path) else config
    return build_detector(values if isinstance(values, DinoConfig) else DinoConfig.from_dict(values))
