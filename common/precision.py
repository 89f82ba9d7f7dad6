"""Which number format a forward pass uses, and the learning rate of a step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch

from common.errors import UserError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_in_hardware(device: torch.device) -> bool:
    """Whether bf16 products run in hardware: AMX or AVX-512 BF16 on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def choose(precision: str, device: torch.device) -> str:
    """ "auto" -> "bf16" where the hardware has it, else "fp32"; other names are checked and returned.

    Raises:
        UserError: fp16 on a CPU, where it would be slow and overflow.
    """
    if precision == "auto":
        return "bf16" if bf16_in_hardware(device) else "fp32"
    if precision not in PRECISIONS:
        raise UserError(f"`--precision` must be one of auto, {', '.join(PRECISIONS)}, got {precision}.")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("`--precision fp16` needs a GPU; on a CPU use bf16 or fp32.")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast region of a chosen precision (see `choose`)."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


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


def learning_rate(
    step: int, total: int, peak: float, low: float, schedule: str, warmup: int = 0, per_epoch: int = 0
) -> float:
    """The learning rate of a 0-based step.

    Args:
        total: steps of the phase; the cosine ends there at `low`.
        schedule: "cosine" or "constant".
        warmup: steps of linear warm-up from peak / warmup.
        per_epoch: steps per epoch when the cosine moves once per epoch (as published), 0 to move every step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if per_epoch:
        step = step // per_epoch * per_epoch
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
