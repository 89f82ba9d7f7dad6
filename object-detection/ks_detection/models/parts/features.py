"""Backbone maps kept on disk, so that steps on a frozen backbone run the transformer only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.record import save_tensors


class FeatureCache:
    """Maps by image, in a folder named after everything they depend on.

    Each image runs through the backbone alone, so maps near the edge of a padded batch differ a little from
    those computed in the batch; what is padding is masked in either case.

    Args:
        place: folder of all such caches; gigabytes: the most that is written.
        sizes: shorter and longer side that images are resized to, pixels.
        model: its backbone computes what is missing; a copy of its weights is not kept.
    """

    def __init__(self, place: str, gigabytes: float, sizes: tuple[int, int], model: nn.Module) -> None:
        self.backbone = model.backbone
        weights = [f"{p.double().sum().item():.9e}" for p in model.backbone.state_dict().values()]
        words = json.dumps([model.config.backbone, model.config.return_interm_indices, *sizes, weights])
        self.folder = Path(place) / hashlib.sha256(words.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache-features {place}: {error.strerror}.") from None
        self.left = int(gigabytes * 2**30) - sum(f.stat().st_size for f in self.folder.glob("*.pt"))

    def get(self, name: str, image: Tensor) -> list[Tensor]:
        """The maps [C, h, w] of a normalised image [3, H, W], from disk or computed (and written while there is room).

        name: stands for the image and nothing else; file names alone repeat from data set to data set.
        """
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.pt"
        if file.is_file():
            return torch.load(file, weights_only=True)
        was_training = self.backbone.training
        with torch.no_grad():
            device = next(self.backbone.parameters()).device
            maps = [level[0].cpu() for level in self.backbone.eval()(image[None].to(device))]
        self.backbone.train(was_training)
        size = sum(level.numel() * level.element_size() for level in maps)
        if size <= self.left:
            self.left -= size
            save_tensors(file, maps)
        return maps


def pad_maps(
    images: list[list[Tensor]], sizes: list[tuple[int, int]], device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """([B, C, h, w] per level, [B, H, W] mask): maps of images of `sizes` pixels padded to the largest."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool, device=device)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = False
    levels = []
    for maps in zip(*images, strict=True):
        h, w = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
        level = torch.zeros(len(maps), maps[0].shape[0], h, w, device=device)
        for row, found in enumerate(maps):
            level[row, :, : found.shape[-2], : found.shape[-1]] = found.to(device)
        levels.append(level)
    return levels, mask
