"""A detector small enough for tests, and targets for it."""

import torch
from ks_detection.models.detectors import build_dino
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.model import Dino

TINY = {"num_classes": 5, "backbone": "tiny", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 48, "enc_layers": 2,
        "dec_layers": 3, "num_select": 30}  # fmt: skip


def tiny_config(**changes) -> DinoConfig:
    return DinoConfig(**(TINY | {"num_queries": 20, "dn_number": 5} | changes))


def tiny_dino(seed: int = 0, **changes) -> Dino:
    torch.manual_seed(seed)
    return build_dino(tiny_config(**changes))


def some_targets() -> list[dict]:
    return [
        {"labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.1]])},
        {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.4, 0.6, 0.3, 0.5]])},
    ]


def some_images(*sizes: tuple[int, int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes or ((64, 96), (96, 64))]
