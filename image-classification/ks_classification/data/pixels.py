"""The images of one part of the data, decoded and transformed when they are drawn: what loaders and workers read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.knobs import Checked, knob
from common.streams import Draw, derive
from ks_classification.data.images import Item
from ks_classification.data.transforms import test_views, train_views
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
    keep_decoded: int = knob(
        64, "MiB of decoded images kept in memory; the others are read again when drawn", most=2**20
    )
    label_smoothing: float = knob(0.0, "share of the target spread over all classes", least=0, below=1)
    eval_batch: int = knob(64, "images per batch when scoring", least=1, most=65_536)
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
    """A batch: normalised images [B, 3, S, S], logit rows [B], file names; and what was drawn from which part.

    images: None where a cache may have what a model makes of them; `ClassificationDomain.shown` loads them.
    """

    images: Tensor | None
    labels: Tensor
    names: list[str]
    draws: tuple[Draw, ...] = ()
    part: str = ""


class Room:
    """Bytes of memory that decoded images may still take."""

    def __init__(self, config: ImageConfig) -> None:
        self.left = config.keep_decoded * 2**20 // max(1, config.workers)  # each worker keeps its own

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes, which are then taken."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Pixels(Dataset[Images]):
    """The images of one part, by draw: `pixels[draws]` is a batch.

    What is drawn is read from its file and kept while there is room. What came first stays: every epoch reads all
    images in another order, so that any share of them serves as well as another.

    Args:
        items: readable items, and the logit row of each.
        room: of all parts together.
        views: augmented views of each image, which repeat; 0 makes a new one for each draw.
        part: "train" or "test".
    """

    def __init__(
        self, items: Sequence[Item], rows: Sequence[int], spec: ModelSpec, config: ImageConfig,
        room: Room | None = None, views: int = 0, part: str = "",
    ) -> None:  # fmt: skip
        self.items, self.names, self.rows = list(items), [i.name for i in items], list(rows)
        self.size, self.config, self.room = spec.size, config, room or Room(config)
        self.kept: dict[int, Tensor] = {}  # uint8 [3, H, W] by position
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (spec.mean, spec.std))
        self.views, self.part = views, part
        self.deferred = False  # whether batches come without images
        self.constant = False  # whether they do where they are drawn as in tests
        self.digests: dict[int, bytes] = {}  # of items, by position

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draws: Sequence[Draw]) -> Images:
        labels = torch.tensor([self.rows[d.index] for d in draws])
        names = [self.names[d.index] for d in draws]
        later = self.deferred or (self.constant and all(d.seed is None for d in draws))
        return Images(None if later else self.load(draws), labels, names, tuple(draws), self.part)

    def load(self, draws: Sequence[Draw]) -> Tensor:
        """Normalised images [B, 3, S, S]."""
        return (torch.stack(self.views_of(draws)).float() - self.mean) / self.std

    def repeat(self) -> bool:
        """Whether a draw's image comes again."""
        return bool(self.part == "test" or self.views or not self.config.augment)

    def key(self, draw: Draw) -> bytes:
        """Stands for the picture and the view of it."""
        if draw.index not in self.digests:
            self.digests[draw.index] = self.items[draw.index].digest()
        c, view = self.config, self._view(draw.seed)
        words = repr((c.keep_aspect, view, (c.flip, c.crop) if view is not None else None))
        return hashlib.blake2b(self.digests[draw.index] + words.encode(), digest_size=16).digest()

    def _view(self, seed: int | None) -> int | None:
        """Which of the views a draw's seed stands for; None is that of tests."""
        if seed is None or not self.config.augment:
            return None
        return seed % self.views if self.views else seed

    def _decoded(self, indices: Sequence[int]) -> dict[int, Tensor]:
        """uint8 [3, H, W] of these positions; those that are not kept are read by several threads."""
        missing = sorted(set(indices) - self.kept.keys())
        if len(missing) < 2:
            read = [self._read(i) for i in missing]
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                read = list(pool.map(self._read, missing))
        found = dict(zip(missing, read, strict=True))
        for index, pixels in found.items():
            if self.room.take(pixels.nbytes):
                self.kept[index] = pixels
        return {index: found[index] if index in found else self.kept[index] for index in indices}

    def _read(self, index: int) -> Tensor:
        limit, prepare = preparing(self.size, self.config)
        return prepare(self.items[index].open(limit))

    def views_of(self, draws: Sequence[Draw]) -> list[Tensor]:
        """Transformed images, uint8 [3, S, S] each; without a seed as in tests."""
        c, random = self.config, [self._view(d.seed) is not None for d in draws]
        if len(set(random)) > 1:
            return [view for draw in draws for view in self.views_of([draw])]
        decoded = self._decoded([d.index for d in draws])
        pixels = [decoded[d.index] for d in draws]
        if not random[0]:
            return test_views(pixels, self.size, c.keep_aspect)
        return train_views(pixels, [self._seed(d) for d in draws], self.size, c.flip, c.crop)

    def _seed(self, draw: Draw) -> int:
        """Of the augmentation of a draw."""
        view = self._view(draw.seed)
        assert view is not None
        return derive(0, "view", self.key(Draw(draw.index, view))) if self.views else view

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forks: they read the files themselves."""
        return {**self.__dict__, "kept": {}}


def preparing(size: int, config: ImageConfig) -> tuple[int, Callable[[Image.Image], Tensor]]:
    """(the shorter side that is enough, what makes uint8 [3, H, W] of a picture).

    With the aspect kept, the shorter side is at most 1.25 times `size`, which leaves room for random crops.
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

    return limit, prepare
