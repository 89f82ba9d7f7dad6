"""Which number format a forward pass uses."""

from __future__ import annotations

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


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The autocast region of a chosen precision (see `choose`)."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
