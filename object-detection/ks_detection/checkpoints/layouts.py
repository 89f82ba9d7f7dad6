"""Which detector a file holds, and its tensors under our names."""

from __future__ import annotations

from torch import Tensor

from common.errors import UserError
from ks_detection.models.detectors import available, detector_type
from ks_detection.models.parts.config import DetectorConfig


def our_state(state: dict[str, Tensor], config: DetectorConfig | None) -> tuple[dict[str, Tensor], DetectorConfig]:
    """(the state of a file under our names, its config: `config` or, without one, read off keys and shapes).

    Raises:
        UserError: the config is of another detector than the file.
    """
    layouts = {name: detector_type(name).layout for name in available()}
    found = next((name for name, layout in layouts.items() if layout.is_own(state)), None)
    wanted = found or "dino" if config is None else config.modelname
    if found not in (None, wanted):
        raise UserError(f"checkpoint holds a {found}, the config wants a {wanted}; set `modelname` = {found!r}.")
    ours = layouts[wanted].to_ours(state, config)
    return ours, config or layouts[wanted].infer_config(ours)
