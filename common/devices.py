"""Which device a run uses."""

from __future__ import annotations

import torch

from common.errors import UserError


def choose_device(name: str, local_rank: int) -> torch.device:
    """ "auto" -> this rank's GPU or the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError("`--device cuda` was asked for, but torch sees no GPU; use --device cpu.")
        number = str(local_rank) if name == "cuda" else name.partition(":")[2]
        if not number.isdecimal() or int(number) >= torch.cuda.device_count():
            raise UserError(f"`--device {name}`: there is no GPU {number}; torch sees {torch.cuda.device_count()}.")
        device = torch.device("cuda", int(number))
        torch.cuda.set_device(device)
        return device
    if name != "cpu":
        raise UserError(f"`--device` must be auto, cpu, cuda or cuda:N, got {name}.")
    return torch.device(name)
