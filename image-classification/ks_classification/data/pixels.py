"""Decoded images of one part of the data, transformed draw by draw: what loaders and their workers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.knobs import Checked, knob
from common.streams import Draw
from ks_classification.data.images import Item, decode
from ks_classification.data.transforms import seeded, test_transform, train_transform
from ks_classification.models.build import ModelSpec


@dataclass
class ImageConfig(Checked):
    """Images: which are used, how they are read, augmented and scored."""

    augment: bool = knob(True, "random crops and mirror images while training")
    flip: bool = knob(True, "mirror images are part of the augmentation (not for digits)")
    crop: float = knob(0.6, "smallest share of the area that a random crop keeps", above=0, most=1)
    keep_aspect: bool = knob(True, "resize without distortion (published: squeezed to a square)")
    skip_corrupt: bool = knob(False, "leave unreadable images out instead of stopping")
    workers: int = knob(0, "processes that prepare batches; 0 does it in this one", least=0, most=256)
    label_smoothing: float = knob(0.0, "share of the target spread over all classes", least=0, below=1)
    cache_stem: str = knob("", "folder in which the frozen stem's outputs are kept (hybrid models)")
    stem_views: int = knob(4, "augmented views of each training image in that cache", least=1)
    eval_batch: int = knob(256, "images per batch when scoring", least=1, most=65_536)
    eval_margin: bool = knob(False, "score faces with the head's margin on the true class (the published face numbers)")
    learn_fraction: float = knob(1.0, "share of each class's training images that a learn phase uses", above=0, most=1)
    forget_fraction: float = knob(1.0, "the same for classes to be forgotten", above=0, most=1)
    retain_fraction: float = knob(1.0, "the same for all other classes", above=0, most=1)
    shots: int = knob(0, "this many training images per class instead of a share (K-shot)", least=0)
    stratified: bool = knob(True, "draw the share class by class (published: over all images)")
    validation: float = knob(
        0.0,
        "share of each class's training images that is scored in the place of the test images and trains nothing, "
        "for choosing settings; the same images for every seed",
        least=0,
        below=1,
    )
    split: str = knob("", "split.json of an earlier run whose training images are used again")


class Images(NamedTuple):
    """A batch: normalised images [B, 3, S, S] (or stem outputs), logit rows [B], file names."""

    images: Tensor
    labels: Tensor
    names: list[str]


class Pixels:
    """The images of one part, by draw: `pixels[draws]` is a batch.

    Args:
        items: readable items, `pixels` [3, H, W] uint8 of each, and its logit row.
    """

    def __init__(
        self, items: Sequence[Item], pixels: list[Tensor], rows: Sequence[int], spec: ModelSpec, config: ImageConfig
    ) -> None:
        self.names, self.pixels, self.rows = [i.name for i in items], pixels, list(rows)
        self.size, self.config = spec.size, config
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (spec.mean, spec.std))
        self.stem: np.ndarray | None = None  # [items, views, C, h, w] float16, mapped from disk

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, draws: Sequence[Draw]) -> Images:
        images = torch.stack([self._load(draw.index, draw.seed) for draw in draws])
        indices = [d.index for d in draws]
        labels = torch.tensor([self.rows[i] for i in indices])
        images = images if self.stem is not None else self.normalised(images)
        return Images(images, labels, [self.names[i] for i in indices])

    def _load(self, index: int, seed: int | None) -> Tensor:
        """One transformed image, uint8 [3, S, S], or its cached stem output in float32.

        Autocast on a CPU stacks no float16 tensors.
        """
        if self.stem is None:
            return self.image(index, seed)
        view = 0 if seed is None else seed % self.stem.shape[1]
        return torch.from_numpy(self.stem[index, view].astype(np.float32))

    def image(self, index: int, seed: int | None) -> Tensor:
        """One transformed image, uint8 [3, S, S]; without a seed as in tests."""
        c = self.config
        if seed is None or not c.augment:
            return test_transform(self.size, c.keep_aspect)(self.pixels[index])
        return seeded(train_transform(self.size, c.flip, c.crop, c.keep_aspect), self.pixels[index], seed)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> what the model reads."""
        return (images.float() - self.mean) / self.std

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forks: arrays by value, since each tensor would need a file handle; maps by name."""
        state = {**self.__dict__, "pixels": [p.numpy() for p in self.pixels]}
        return state | {"stem": None if self.stem is None else self.stem.filename}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = [torch.from_numpy(p) for p in state["pixels"]]
        self.stem = None if state["stem"] is None else np.load(state["stem"], mmap_mode="r")


def read_pixels(
    items: list[Item], size: int, config: ImageConfig, what: str
) -> tuple[list[Item], list[Tensor], list[str]]:
    """(readable items, their uint8 images, names of unreadable files).

    Every image is read once and kept at no more than 1.25 times `size` on its shorter side.

    Raises:
        UserError: some file is no image and --skip-corrupt is not set; names them.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    limit = round(1.25 * size) if config.keep_aspect else size

    def prepare(image: Image.Image) -> Tensor:
        if not config.keep_aspect:
            image = image.resize((limit, limit), Image.Resampling.BILINEAR)
        elif min(image.size) > limit:
            scale = limit / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return pil_to_tensor(image)

    good, tensors, bad = decode(items, prepare, config.skip_corrupt, what, limit)
    return [items[i] for i in good], tensors, bad
