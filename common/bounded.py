"""A bound on what building a model may take: its config may come from anywhere."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError

MOST = 100_000  # tensors of a model


class Bounded(TorchDispatchMode):
    """Inside, tensors that are made out of nothing may together be no larger than half the memory of this machine.

    Raises:
        UserError: names `what`, before the tensor that is too large is made.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.count = what, 0
        self.left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 2**36

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = args[0] if args else ()
        if isinstance(size, list | tuple | torch.Size) and all(isinstance(n, int) for n in size):
            self.left -= 4 * math.prod(size)
            self.count += 1
            if self.left < 0 or self.count > MOST:
                raise UserError(
                    f"{self.what} asks for a model larger than half the memory of this machine; make it smaller."
                )
        return func(*args, **(kwargs or {}))
