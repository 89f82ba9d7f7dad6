"""How the files of each detector are laid out, by the `modelname` of its config."""

from __future__ import annotations

from torch import Tensor

from common.errors import UserError
from ks_detection.checkpoints import deformable_detr, dino
from ks_detection.models.parts.config import DetectorConfig

# Modules with `is_own(state)`, `to_ours(state, config)`, `to_published(state, config)` and `infer_config(our state)`.
LAYOUTS = {"dino": dino, "deformable_detr": deformable_detr}


def our_state(state: dict[str, Tensor], config: DetectorConfig | None) -> tuple[dict[str, Tensor], DetectorConfig]:
    """(the state of a file under our names, its config: `config` or, without one, read off keys and shapes).

    Raises:
        UserError: the config is of another detector than the file.
    """
    found = next((name for name, layout in LAYOUTS.items() if layout.is_own(state)), None)
    wanted = found or "dino" if config is None else config.modelname
    if found not in (None, wanted):
        raise UserError(f"checkpoint holds a {found}, the config wants a {wanted}; set `modelname` = {found!r}.")
    ours = LAYOUTS[wanted].to_ours(state, config)
    return ours, config or LAYOUTS[wanted].infer_config(ours)
