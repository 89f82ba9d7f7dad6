"""Decoded images of one part of the data, transformed draw by draw: what loaders and their workers read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from common.streams import Draw
from ks_classification.data.images import Item, decode
from ks_classification.data.transforms import seeded, test_transform, train_transform
from ks_classification.models.build import ModelSpec


@dataclass
class ImageConfig:
    """Images: which are used, how they are read, augmented and scored."""

    augment: bool = field(default=True, metadata={"help": "random crops and mirror images while training"})
    flip: bool = field(default=True, metadata={"help": "mirror images are part of the augmentation (not for digits)"})
    crop: float = field(default=0.6, metadata={"help": "smallest share of the area that a random crop keeps"})
    keep_aspect: bool = field(
        default=True, metadata={"help": "resize without distortion (published: squeezed to a square)"}
    )
    skip_corrupt: bool = field(default=False, metadata={"help": "leave unreadable images out instead of stopping"})
    workers: int = field(default=0, metadata={"help": "processes that prepare batches; 0 does it in this one"})
    label_smoothing: float = field(default=0.0, metadata={"help": "share of the target spread over all classes"})
    cache_stem: str = field(
        default="", metadata={"help": "folder in which the frozen stem's outputs are kept (hybrid models)"}
    )
    stem_views: int = field(default=4, metadata={"help": "augmented views of each training image in that cache"})
    eval_batch: int = field(default=256, metadata={"help": "images per batch when scoring"})
    eval_margin: bool = field(
        default=False,
        metadata={"help": "score faces with the head's margin on the true class (the published face numbers)"},
    )
    learn_fraction: float = field(
        default=1.0, metadata={"help": "share of each class's training images that a learn phase uses"}
    )
    forget_fraction: float = field(default=1.0, metadata={"help": "the same for classes to be forgotten"})
    retain_fraction: float = field(default=1.0, metadata={"help": "the same for all other classes"})
    shots: int = field(default=0, metadata={"help": "this many training images per class instead of a share (K-shot)"})
    stratified: bool = field(
        default=True, metadata={"help": "draw the share class by class (published: over all images)"}
    )
    split: str = field(
        default="", metadata={"help": "split.json of an earlier run whose training images are used again"}
    )

    def __post_init__(self) -> None:
        for name in ("learn_fraction", "forget_fraction", "retain_fraction", "crop"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"`--{name.replace('_', '-')}` is a share, above 0 up to 1, got {getattr(self, name)}.")
        for name, least in (("workers", 0), ("shots", 0), ("stem_views", 1), ("eval_batch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"`--{name.replace('_', '-')}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"`--label-smoothing` is a share, 0 up to 1, got {self.label_smoothing}.")


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
        images = torch.stack([self._load(*draw) for draw in draws])
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

    def batches(self, draws: Iterator[list[Draw]]) -> Iterable[Images]:
        """A batch for every list of draws, made by `config.workers` processes; their number changes no batch."""
        if self.config.workers == 0:
            return (self[batch] for batch in draws)
        from torch.utils.data import DataLoader

        own = torch.Generator()  # else the loader would draw a seed from torch's generator
        return DataLoader(
            self, batch_size=None, sampler=_Sampler(draws), num_workers=self.config.workers, generator=own
        )

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forks: arrays by value, since each tensor would need a file handle; maps by name."""
        state = {**self.__dict__, "pixels": [p.numpy() for p in self.pixels]}
        return state | {"stem": None if self.stem is None else self.stem.filename}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = [torch.from_numpy(p) for p in state["pixels"]]
        self.stem = None if state["stem"] is None else np.load(state["stem"], mmap_mode="r")


class _Sampler:
    """Lists of draws as the keys of a data set."""

    def __init__(self, draws: Iterator[list[Draw]]) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.draws


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

    good, tensors, bad = decode(items, prepare, config.skip_corrupt, what)
    return [items[i] for i in good], tensors, bad
