"""The detectors there are, by the `modelname` of their configs: "dino" and "deformable_detr"."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from common.errors import UserError
from ks_detection.deformable_detr.config import DeformableConfig
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.config_file import read_config
from ks_detection.dino.criterion import Criterion

Config = DinoConfig | DeformableConfig
CONFIGS: dict[str, type[Config]] = {"dino": DinoConfig, "deformable_detr": DeformableConfig}


def config_from(values: dict) -> Config:
    """The config that a dictionary describes; `modelname` chooses the detector, DINO where it is missing.

    Raises:
        UserError: another detector, or values that cannot be built.
    """
    name = values.get("modelname", "dino")
    if name not in CONFIGS:
        raise UserError(f"config: `modelname` is {name!r}; allowed: {', '.join(CONFIGS)}.")
    return CONFIGS[name].from_dict(values)


def changed(config: Config, changes: dict) -> Config:
    """The config with other values.

    Raises:
        UserError: a name that it does not have, or a value that cannot be built.
    """
    values = config.to_dict() | {"modelname": config.modelname} | changes
    result = config_from(values)
    strangers = [name for name in changes if name not in result.to_dict()]
    if strangers:
        raise UserError(
            f"--options: a {config.modelname} has no `{strangers[0]}`; it has: {', '.join(result.to_dict())}."
        )
    return result


def build_detector(config: Config | dict | str | Path) -> nn.Module:
    """A detector with fresh weights; with `lora_rank` above 0 adapters sit on every FFN linear, base frozen.

    Args:
        config: a config, a published config file, or the dictionary that `read_config` makes of one.
    """
    if isinstance(config, (str, Path)):
        config = read_config(config)
    from ks_detection.dino.model import adapted

    return adapted(bare_detector(config_from(config) if isinstance(config, dict) else config))


def bare_detector(config: Config) -> nn.Module:
    """The same without adapters."""
    if isinstance(config, DeformableConfig):
        from ks_detection.deformable_detr.model import DeformableDetr  # transformers takes seconds to import

        return DeformableDetr(config)
    from ks_detection.dino.model import Dino

    return Dino(config)


def criterion_for(config: Config) -> Criterion:
    """The loss of a detector."""
    if isinstance(config, DeformableConfig):
        from ks_detection.deformable_detr.criterion import DeformableCriterion

        return DeformableCriterion(config)
    return Criterion(config)


def our_state(state: dict[str, Tensor], config: Config | None) -> tuple[dict[str, Tensor], Config]:
    """(the state of a file under our names, its config: `config` or, without one, read off keys and shapes).

    Raises:
        UserError: the config is of another detector than the file.
    """
    from ks_detection.checkpoints import infer, names
    from ks_detection.deformable_detr import infer as deformable
    from ks_detection.deformable_detr.names import to_ours

    found = "deformable_detr" if deformable.is_deformable(state) else "dino" if "label_enc.weight" in state else None
    wanted = found or "dino" if config is None else config.modelname
    if found not in (None, wanted):
        raise UserError(f"checkpoint holds a {found}, the config wants a {wanted}; set `modelname` = {found!r}.")
    if wanted == "dino":
        ours = names.to_ours(state)
        return ours, config or infer.infer_config(ours)
    ours = to_ours(state, deformable.is_refined(state) if config is None else config.with_box_refine)
    return ours, config or deformable.infer_config(ours)


def published_layout(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A state under our names under the published ones."""
    if isinstance(config, DeformableConfig):
        from ks_detection.deformable_detr import names

        return names.to_published(state, config.dec_layers, config.with_box_refine, config.two_stage)
    from ks_detection.checkpoints import names

    return names.to_published(state, config.dec_layers)
