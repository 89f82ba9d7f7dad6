"""The classification domain: what the loop needs to know about labelled images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common import distributed, splits
from common.domain import ClassTable, Domain, GalleryItem, Prediction
from common.errors import UserError
from common.streams import Draw, Stream
from ks_classification import models
from ks_classification.data import ImageSet, Item, decode
from ks_classification.models import ModelSpec
from ks_classification.transforms import seeded, test_transform, train_transform


@dataclass
class ImageConfig:
    """Images: how they are read and augmented."""

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


class Images(NamedTuple):
    """A batch: normalised images [B, 3, S, S] (or stem outputs), logit rows [B], file names."""

    images: Tensor
    labels: Tensor
    names: list[str]


class ClassificationDomain(Domain):
    """Images with one class each, scored by top-1 accuracy over all logits.

    Args:
        spec: the base model; `classes` are its logit rows before new ones are added.
        images: training and test items of all classes of the plan.
        groups: {"learn", "forget", "retain", ...} -> class names, which decide the share of items used.
        config: see `ImageConfig`.
        base: a model to start from; built at random from the spec when None.
        seed: decides which training items a share holds, and the new rows' start.
    """

    name = "classification"
    metric = "acc"
    metric_label = "top-1 accuracy (%)"

    def __init__(
        self, spec: ModelSpec, images: ImageSet, groups: dict[str, Sequence[str]], config: ImageConfig,
        base: nn.Module | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.spec, self.config, self.base, self.seed = spec, config, base, seed
        wanted = [c for classes in groups.values() for c in classes]
        self.classes = ClassTable(tuple(spec.classes)).extended(wanted)
        missing = [c for c in wanted if c not in images.classes]
        if missing:
            raise UserError(
                f"there are no images of class {missing[0]!r}; the data has: {splits.shorten(images.classes)}."
            )
        self.groups = groups
        self.split = self._choose(images.train)
        chosen = set(self.split["train"]) if self.split else None
        train = [i for i in images.train if i.label in wanted and (chosen is None or i.name in chosen)]
        test = [i for i in images.test if i.label in wanted]
        self._mean = torch.tensor(spec.mean).view(3, 1, 1) * 255
        self._std = torch.tensor(spec.std).view(3, 1, 1) * 255
        self.skipped: list[str] = []
        self.train_items, self._train = self._decode(train, "reading training images")
        self.test_items, self._test = self._decode(test, "reading test images")
        self._by_class = {
            "train": _positions(self.train_items), "test": _positions(self.test_items),
        }  # fmt: skip
        for part, found in self._by_class.items():
            empty = [c for c in wanted if c not in found]
            if empty:
                raise UserError(f"class {empty[0]!r} has no readable {part} image.")
        self._stem: dict[str, Any] = {}
        if config.cache_stem:
            self._fill_stem_cache()

    # ---- which images ------------------------------------------------------------------------------------

    def _choose(self, items: list[Item]) -> dict[str, Any]:
        """The training items that are used, by name; empty when all are."""
        c = self.config
        if c.split:
            from common.record import read_json

            return read_json(c.split)
        shares = {"learn": c.learn_fraction, "forget": c.forget_fraction}
        if not c.shots and all(s == 1.0 for s in (*shares.values(), c.retain_fraction)):
            return {}
        names = []
        for group, classes in self.groups.items():
            members = [i for i in items if i.label in classes]
            fraction = shares.get(group, c.retain_fraction)
            labels = [self.classes.row(i.label) for i in members]
            picked = splits.subset(labels, self.seed, fraction, c.shots, c.stratified)
            names += [members[p].name for p in picked]
        return {"train": names}

    def _decode(self, items: list[Item], what: str) -> tuple[list[Item], list[Tensor]]:
        """Reads every image once and keeps it as uint8, at most 1.25 times the model's size on its shorter side."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        limit = round(1.25 * self.spec.size) if self.config.keep_aspect else self.spec.size

        def prepare(image: Image.Image) -> Tensor:
            if not self.config.keep_aspect:
                image = image.resize((limit, limit), Image.Resampling.BILINEAR)
            elif min(image.size) > limit:
                scale = limit / min(image.size)
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
                )
            return pil_to_tensor(image)

        good, tensors, bad = decode(items, prepare, self.config.skip_corrupt, what)
        self.skipped += bad
        return [items[i] for i in good], tensors

    def _fill_stem_cache(self) -> None:
        """Runs the frozen stem once over all images: `stem_views` augmented views of each training image."""
        from ks_classification import stem_cache

        stem = stem_cache.stem_of(self.base if self.base is not None else models.build(self.spec)).eval()
        c = self.config
        views = c.stem_views if c.augment else 1
        settings = {"size": self.spec.size, "mean": self.spec.mean, "std": self.spec.std, "views": views}
        settings |= {"flip": c.flip, "crop": c.crop, "keep_aspect": c.keep_aspect}
        for part, items, count in (("train", self.train_items, views), ("test", self.test_items, 1)):
            key = stem_cache.key_of(stem, [i.name for i in items], settings | {"part": part})
            self._stem[part] = torch.from_numpy(
                stem_cache.features(
                    stem, c.cache_stem, key, len(items), count,
                    lambda i, seed, train=part == "train": self._image(i, seed, train),
                    lambda images: (images.float() - self._mean) / self._std, f"stem of {part} images",
                )
            )  # fmt: skip

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return len(self._indices(classes, train))

    def _indices(self, classes: Sequence[str], train: bool) -> list[int]:
        found = self._by_class["train" if train else "test"]
        return [i for c in classes for i in found[c]]

    # ---- the model ---------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> nn.Module:
        import copy

        if pretrained and self.base is not None:
            model = copy.deepcopy(self.base)
        else:
            model = models.build(self.spec)
            if self.base is not None:  # a frozen stem is no knowledge of these classes: it stays
                frozen = {n for n, p in self.base.named_parameters() if not p.requires_grad and ".backbone." in n}
                frozen |= {n for n, _ in self.base.named_buffers()}
                state = self.base.state_dict()
                model.load_state_dict({n: state[n] for n in frozen if n in state}, strict=False)
        return models.widen(model, len(self.classes), self.seed)

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return {"ffn": models.ffn_names(model), "attention": models.attention_names(model)}

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        name, rows = models.classifier_name(model), self.classes.rows(classes)
        head = model.get_submodule(name)
        parts = [p for p in ("weight", "bias") if getattr(head, p, None) is not None]
        return {f"{name}.{part}": rows for part in parts}

    # ---- batches -----------------------------------------------------------------------------------------

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Images]:
        indices = self._indices(classes, train)
        if stream is None:
            share = indices[distributed.rank() :: distributed.world()]
            chunks = [share[i : i + self.config.eval_batch] for i in range(0, len(share), self.config.eval_batch)]
            return (self._collate([self._load(i, None, train) for i in chunk], chunk, train) for chunk in chunks)
        batches = ([Draw(indices[d.index], d.seed) for d in batch] for batch in stream.batches(len(indices)))
        if self.config.workers == 0:
            return (self._train_batch(batch) for batch in batches)
        return self._in_workers(batches)

    def _train_batch(self, batch: list[Draw]) -> Images:
        return self._collate([self._load(d.index, d.seed, True) for d in batch], [d.index for d in batch], True)

    def _in_workers(self, batches: Iterator[list[Draw]]) -> Iterable[Images]:
        from torch.utils.data import DataLoader

        return DataLoader(
            _Drawn(self), batch_sampler=_Endless(batches), num_workers=self.config.workers,
            collate_fn=lambda pairs: self._collate([t for t, _ in pairs], [i for _, i in pairs], True),
        )  # fmt: skip

    def _load(self, index: int, seed: int | None, train: bool) -> Tensor:
        """One transformed image, uint8 [3, S, S], or its cached stem output."""
        if self._stem:
            views = self._stem["train" if train else "test"]
            return views[index, 0 if seed is None else seed % views.shape[1]]
        return self._image(index, seed, train)

    def _image(self, index: int, seed: int | None, train: bool) -> Tensor:
        """One transformed image, uint8 [3, S, S]; without a seed, as in tests."""
        image = (self._train if train else self._test)[index]
        c, size = self.config, self.spec.size
        if seed is None or not c.augment:
            return test_transform(size, c.keep_aspect)(image)
        return seeded(train_transform(size, c.flip, c.crop, c.keep_aspect), image, seed)

    def _collate(self, tensors: list[Tensor], indices: Sequence[int], train: bool) -> Images:
        items = self.train_items if train else self.test_items
        images = torch.stack(tensors).float()
        if not self._stem:
            images = (images - self._mean) / self._std
        labels = torch.tensor([self.classes.row(items[i].label) for i in indices])
        return Images(images, labels, [items[i].name for i in indices])

    # ---- forward and scores ------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Images) -> Prediction:
        return self.predict_together(model, [batch])[0]

    def predict_together(self, model: nn.Module, batches: Sequence[Images]) -> list[Prediction]:
        """One forward pass on the joined batches; every image is independent of the others in a ViT."""
        device = next(model.parameters()).device
        images = torch.cat([b.images for b in batches]).to(device, non_blocking=True)
        logits, embedding = models.forward(model, images)
        logits, embedding = logits.float(), embedding.float()
        sizes = [len(b.labels) for b in batches]
        parts = zip(batches, logits.split(sizes), embedding.split(sizes), strict=True)
        result = []
        for batch, scores, features in parts:
            labels = batch.labels.to(device)
            loss = F.cross_entropy(scores, labels, reduction="none", label_smoothing=self.config.label_smoothing)
            result.append(Prediction(loss.mean(), scores, features, labels, loss))
        return result

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        """Top-1 accuracy over all logits: {"total", class name: ...}, in percent."""
        device = next(model.parameters()).device
        right = torch.zeros(len(self.classes), device=device)
        count = torch.zeros_like(right)
        for batch in self.loader(classes, train=False):
            answers = model(batch.images.to(device)).argmax(-1)
            labels = batch.labels.to(device)
            right.index_add_(0, labels, (answers == labels).float())
            count.index_add_(0, labels, torch.ones_like(labels, dtype=right.dtype))
        right, count = distributed.total(right), distributed.total(count)
        scores = {"total": (100 * right.sum() / count.sum()).item()}
        rows = self.classes.rows(classes)
        return scores | {c: (100 * right[r] / count[r]).item() for c, r in zip(classes, rows, strict=True)}

    def item_names(self, batch: Images) -> list[str]:
        return batch.names

    # ---- for records and reports -------------------------------------------------------------------------

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        """Test images of as many of the classes as possible, the same ones at every call."""
        found = [self._by_class["test"][c] for c in classes]
        picked = [c[k] for k in range(max(map(len, found))) for c in found if k < len(c)][:count]
        batch = self._collate([self._load(i, None, False) for i in picked], picked, False)
        logits = model(batch.images.to(next(model.parameters()).device)).float().softmax(-1)
        share, rows = logits.max(-1)
        items = []
        for i, p, row in zip(picked, share.tolist(), rows.tolist(), strict=True):
            item, answer = self.test_items[i], self.classes.names[row]
            items.append(
                GalleryItem(item.name, _thumbnail(item), item.label, f"{answer} {100 * p:.0f} %", answer == item.label)
            )
        return items

    def describe(self) -> dict[str, Any]:
        c = self.config
        return {
            "model": self.spec.name, "model_args": self.spec.args, "size": self.spec.size,
            "classes": list(self.classes.names),
            "images": {part: {n: len(v) for n, v in found.items()} for part, found in self._by_class.items()},
            "skipped": len(self.skipped), "augment": c.augment, "flip": c.flip, "crop": c.crop,
            "keep_aspect": c.keep_aspect, "label_smoothing": c.label_smoothing, "cached_stem": bool(c.cache_stem),
        }  # fmt: skip


class _Drawn:
    """A data set whose keys are draws, for worker processes."""

    def __init__(self, domain: ClassificationDomain) -> None:
        self.domain = domain

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        return self.domain._load(draw.index, draw.seed, True), draw.index

    def __len__(self) -> int:
        return len(self.domain.train_items)


class _Endless:
    """A batch sampler over an endless stream."""

    def __init__(self, batches: Iterator[list[Draw]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.batches


def _positions(items: Sequence[Item]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        found.setdefault(item.label, []).append(i)
    return found


def _thumbnail(item: Item, side: int = 96) -> bytes:
    """PNG bytes of an image, its longer side `side` pixels."""
    image = item.open()
    scale = side / max(image.size)
    mode = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
