"""L2: a quadratic penalty on the change of every weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.knobs import knob
from common.methods._importance import Importance
from common.methods._snapshots import Weights, trained


class L2(Importance):
    """Omega_n = 1: L(target) + L(keep) + lambda sum_n (theta_n - theta*_n)^2.

    Source: Hsu et al., 2018, arXiv:1810.12488; as a baseline of GS-LoRA, arXiv:2501.09705.
    Published lambda: 0.05 (one forget phase), 0.1 (four, faces), 0.05 (four, ImageNet100); lr 1e-4.
    """

    needs = "keep (learning works without)"
    checked = "the code of GS-LoRA, where it is a baseline"

    @dataclass
    class Config(Importance.Config):
        penalty_weight: float = knob(0.05, "weight of the penalty; lambda in the paper")

    def importance(self, classes: tuple[str, ...]) -> Weights:
        return {name: torch.ones_like(p, dtype=torch.float32) for name, p in trained(self.model).items()}


METHOD = L2
