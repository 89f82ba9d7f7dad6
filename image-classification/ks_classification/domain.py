"""The classification domain: what the loop needs to know about labelled images."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common import distributed, splits
from common.domain import ClassTable, Domain, Evaluation, GalleryItem, Prediction, Read
from common.errors import UserError
from common.evaluation.spill import shares
from common.files import fingerprint
from common.frozen import NOTHING, Frozen, FrozenConfig
from common.images import png
from common.layers import use_fast_linears
from common.progress import watched
from common.streams import Draw, Stream, load_batches
from ks_classification.data import selection
from ks_classification.data.imagenet import titles
from ks_classification.data.images import ImageSet, Item, readable
from ks_classification.data.pixels import ImageConfig, Images, Pixels, Room
from ks_classification.models import build, layers, stages
from ks_classification.models.build import ModelSpec

SEEN = 32  # pixels a side of what images are compared by


class ClassificationDomain(Domain):
    """Images with one class each, scored by top-1 accuracy over all logits.

    Args:
        spec: the base model; `classes` are its logit rows before new ones are added.
        images: training and test items of all classes of the plan.
        groups: {"learn", "forget", "retain", ...} -> class names, which decide the share of items used.
        config: see `ImageConfig`.
        base: a model to start from; built at random from the spec when None.
        seed: decides which training items a share holds, and the new rows' start.
        training: False reads the test images only.
        roles: group name -> "learn", "forget" or "retain", where names of groups do not say it.
        frozen: what is kept of parts that do not train.
        missing: classes of `groups` that have no training images, or whose training images are not to be used.
    """

    name = "classification"
    metric = "acc"
    metric_label = "top-1 accuracy (%)"
    meaning = "the share of test images whose surest answer, out of all classes, is the right one"
    counted, answered = True, "test images"

    def __init__(
        self, spec: ModelSpec, images: ImageSet, groups: dict[str, Sequence[str]], config: ImageConfig,
        base: nn.Module | None = None, seed: int = 0, training: bool = True, missing: Sequence[str] = (),
        roles: Mapping[str, str] | None = None, frozen: FrozenConfig = NOTHING,
    ) -> None:  # fmt: skip
        self.pixel_deviation = spec.std
        self._answers: WeakKeyDictionary[nn.Module, dict[bytes, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
        self.frozen = Frozen(frozen, "classification", spec.size, list(spec.mean), list(spec.std))
        self.spec, self.config, self.base, self.seed = spec, config, base, seed
        images = selection.held_out(images, config.validation) if config.validation else images
        wanted = [c for classes in groups.values() for c in classes]
        self.classes = ClassTable(tuple(spec.classes)).extended(wanted)
        self.titles = titles(wanted)
        strange = [c for c in wanted if c not in images.classes]
        if strange:
            raise UserError(
                f"there are no images of class {strange[0]!r}; the data has: {splits.shorten(images.classes)}."
            )
        taught = {g: [c for c in classes if c not in missing] for g, classes in groups.items()} if training else {}
        if base is not None:
            self._check_head(base)
        self.plain_loss = base is None or not hasattr(layers.classifier(base), "item_loss")
        if config.eval_margin:
            self.metric_label = "top-1 accuracy with margin (%)"
        used = selection.choose(images.train, taught, roles or {}, self.classes, config, seed) if training else None
        self._whole = Counter(i.label for i in images.train)
        self.subset = None if used is None else selection.digest(used)
        learnable = {c for classes in taught.values() for c in classes}
        self.items: dict[str, list[Item]] = {}
        self.pixels: dict[str, Pixels] = {}
        self.skipped: list[str] = []
        self._room = Room(config)
        self._read("train", [i for i in images.train if i.label in learnable and (used is None or i.name in used)])
        self._read("test", [i for i in images.test if i.label in wanted])
        self._by_class = {part: _positions(items) for part, items in self.items.items()}
        drawn = learnable if config.stratified else set()  # a share of all images may hold none of a class
        for part, needed in (("train", drawn), ("test", set(wanted))):
            empty = [c for c in wanted if c in needed and c not in self._by_class[part]]
            if empty:
                raise UserError(f"class {empty[0]!r} has no readable {'training' if part == 'train' else part} image.")

    def _check_head(self, model: nn.Module) -> None:
        """Raises UserError for settings that the model's classifier cannot honour."""
        head = layers.classifier(model)
        if self.config.eval_margin and not hasattr(head, "with_margin"):
            raise UserError("`--eval-margin` needs a face model with a margin head (cosface, arcface or sface).")
        if self.config.label_smoothing and hasattr(head, "item_loss"):
            raise UserError("`--label-smoothing` is for plain classifiers; face heads have losses of their own.")

    # ---- which images ------------------------------------------------------------------------------------

    def _read(self, part: str, items: list[Item]) -> None:
        what = f"looking at {'training' if part == 'train' else part} images"
        good, bad = readable(items, self.config.skip_corrupt, what)
        row = {name: i for i, name in enumerate(self.classes.names)}
        self.skipped += bad
        self.items[part] = good
        rows, views = [row[i.label] for i in good], self.frozen.config.views if part == "train" else 0
        self.pixels[part] = Pixels(good, rows, self.spec, self.config, self._room, views, part)

    def documents(self) -> dict[str, Any]:
        """split.json: the images of this run, which --split uses again."""
        return {selection.SPLIT: {part: pixels.names for part, pixels in self.pixels.items()}}

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return len(self._indices(classes, train))

    def whole_size(self, classes: Sequence[str]) -> int:
        return sum(self._whole[c] for c in classes)

    def weight(self, classes: Sequence[str]) -> int:
        return self.size(classes, train=False)

    def _indices(self, classes: Sequence[str], train: bool) -> list[int]:
        found = self._by_class["train" if train else "test"]
        return [i for c in classes for i in found.get(c, ())]

    # ---- the model ---------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> nn.Module:
        if pretrained and self.base is not None:
            model = copy.deepcopy(self.base)
        else:
            model = build.build(self.spec)
            if self.base is not None:  # a frozen stem is no knowledge of these classes: it stays
                frozen = {n for n, p in self.base.named_parameters() if not p.requires_grad and ".backbone." in n}
                frozen |= {n for n, _ in self.base.named_buffers()}
                state = self.base.state_dict()
                model.load_state_dict({n: state[n] for n in frozen if n in state}, strict=False)
        use_fast_linears(model)
        return layers.widen(model, len(self.classes), self.seed, self.classes.names)

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return layers.adapter_targets(model)

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        name, rows = layers.classifier_name(model), self.classes.rows(classes)
        head = model.get_submodule(name)
        parts = [p for p in ("weight", "bias") if getattr(head, p, None) is not None]
        return {f"{name}.{part}": rows for part in parts}

    def freeze(self, model: nn.Module, like: nn.Module | None = None, again: bool = False) -> None:
        depth = stages.constant(model if like is None else like) if self.frozen.on else 0
        model.frozen_stages = depth  # type: ignore[assignment]  # copies of the model have it too
        for pixels in self.pixels.values():
            pixels.deferred = pixels.deferred or bool(depth and (again or pixels.repeat()))
            pixels.constant = pixels.constant or depth > 0

    # ---- batches -----------------------------------------------------------------------------------------

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Images]:
        pixels, indices = self.pixels["train" if train else "test"], self._indices(classes, train)
        if stream is None:
            return self._ordered(indices, "train" if train else "test")
        return load_batches(stream, indices, pixels.__getitem__, 0 if pixels.deferred else self.config.workers)

    def _ordered(self, indices: Sequence[int], part: str) -> Iterator[Images]:
        """One pass over this rank's share of some images."""
        share, count = indices[distributed.rank() :: distributed.world()], self.config.eval_batch
        return (self.pixels[part][[Draw(k, None) for k in share[i : i + count]]] for i in range(0, len(share), count))

    def saved(self) -> dict[str, float]:
        return self.frozen.counts()

    def shown(self, batch: Images) -> Images:
        return batch if batch.images is not None else batch._replace(images=self.pixels[batch.part].load(batch.draws))

    # ---- forward and scores ------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Images) -> Prediction:
        return self.predict_together(model, [batch])[0]

    def predict_together(
        self, model: nn.Module, batches: Sequence[Images], read: Sequence[Read] = ()
    ) -> list[Prediction]:
        """One forward pass on the joined batches; every image is independent of the others in a ViT."""
        logits, embedding = self.forward(model, batches)
        logits, embedding = logits.float(), embedding.float()
        labels = torch.cat([b.labels for b in batches]).to(logits.device, non_blocking=True)
        losses = self._losses(model, logits, embedding, labels)
        sizes = [len(b.labels) for b in batches]
        parts = zip(*(t.split(sizes) for t in (losses, logits, embedding, labels)), strict=True)
        return [Prediction(loss.mean(), *rest, loss) for loss, *rest in parts]

    def forward(self, model: nn.Module, batches: Sequence[Images]) -> tuple[Tensor, Tensor]:
        """(logits [B, C], embedding [B, D]) of the joined batches; what never changes of the model comes from the cache."""
        deferred = all(b.images is None for b in batches)
        if deferred and getattr(model, "answers_stay", False):
            return self._remembered(model, batches)
        return self._computed(model, batches, deferred)

    def _remembered(self, model: nn.Module, batches: Sequence[Images]) -> tuple[Tensor, Tensor]:
        """The same of a model that never changes, computed once for each view."""
        known = self._answers.setdefault(model, {})
        drawn = [(b.part, self.pixels[b.part].key(draw), draw) for b in batches for draw in b.draws]
        missing = {key: (part, draw) for part, key, draw in drawn if key not in known}
        if missing:
            fresh = [Images(None, torch.empty(0), [], (draw,), part) for part, draw in missing.values()]
            known.update(zip(missing, zip(*self._computed(model, fresh, True), strict=True), strict=True))
        logits, embedding = zip(*(known[key] for _, key, _ in drawn), strict=True)
        return torch.stack(logits), torch.stack(embedding)

    def _computed(self, model: nn.Module, batches: Sequence[Images], deferred: bool) -> tuple[Tensor, Tensor]:
        device, depth = next(model.parameters()).device, getattr(model, "frozen_stages", 0)
        found = stages.chain(model) if depth and deferred else None
        depth = found.kept(depth) if found is not None else 0
        parts = [stage.parts for stage in found.stages[:depth]] if found is not None else []
        if found is None or not depth or not self.frozen.usable(model, parts):
            images = torch.cat([b.images for b in map(self.shown, batches)]).to(device, non_blocking=True)
            return stages.forward(model, images)
        drawn = [(self.pixels[b.part], draw) for b in batches for draw in b.draws]

        def compute(positions: list[int]) -> list[tuple[Tensor]]:
            images: list[Any] = [None] * len(positions)
            for pixels in dict.fromkeys(drawn[i][0] for i in positions):
                own = [k for k, i in enumerate(positions) if drawn[i][0] is pixels]
                for k, image in zip(own, pixels.load([drawn[positions[k]][1] for k in own]), strict=True):
                    images[k] = image
            return [(tokens,) for tokens in found.run(torch.stack(images).to(device), 0, depth)]

        keys = [pixels.key(draw) for pixels, draw in drawn]
        tokens = [outputs[0] for outputs in self.frozen.outputs(model, parts, keys, compute)]
        return stages.forward(model, torch.stack(tokens).to(device).float(), depth)

    def seen(self, model: nn.Module, batch: Images) -> Tensor:
        """[N, C, h, w], at most 32 x 32."""
        images, stem = self.shown(batch).images, getattr(getattr(model, "patch_embed", None), "backbone", None)
        assert images is not None, "`shown` loads them"
        frozen = stem is not None and not any(p.requires_grad for p in stem.parameters())
        images = images.to(next(model.parameters()).device)
        found = stem(images) if frozen and stem is not None else images
        return F.adaptive_avg_pool2d(found, (min(SEEN, found.shape[-2]), min(SEEN, found.shape[-1])))

    def _losses(self, model: nn.Module, logits: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
        """[N]: what the head itself is trained with (faces: with its margin), else cross-entropy."""
        head = layers.classifier(model)
        if hasattr(head, "item_loss"):
            return head.item_loss(embedding, labels)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.config.label_smoothing)

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        """Top-1 accuracy over all logits: {"total", class name: ...}, in percent."""
        return self.evaluate_groups(model, {"": classes})[""].scores

    def evaluate_groups(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], most: int = 0
    ) -> dict[str, Evaluation]:
        return {group: self._evaluation(model, classes, most) for group, classes in groups.items()}

    def _evaluation(self, model: nn.Module, classes: Sequence[str], most: int) -> Evaluation:
        indices = self._sample(classes, most) if most else self._indices(classes, train=False)
        batches = -(-len(indices) // (self.config.eval_batch * distributed.world()))
        own = torch.zeros(2, 0, dtype=torch.long)  # label and answer of each image
        for batch in watched(self._ordered(indices, "test"), batches, "scoring"):
            logits, embedding = self.forward(model, [batch])
            labels = batch.labels.to(logits.device)
            if self.config.eval_margin:
                logits = layers.classifier(model)(embedding, labels)
            own = torch.cat([own, torch.stack([labels, logits.argmax(-1)]).cpu()], dim=1)
        pairs = torch.cat(distributed.gather(own), dim=1)
        right = (pairs[0] == pairs[1]).float()
        scores, answers = {"total": (100 * right.sum() / len(right)).item()}, {}
        sizes = pairs[0].bincount(minlength=len(self.classes)).tolist()
        called = pairs[1][pairs[0].argsort()].split(sizes)  # the answers on each class
        for name, row in zip(classes, self.classes.rows(classes), strict=True):
            if sizes[row]:
                scores[name] = (100 * (called[row] == row).float().sum() / sizes[row]).item()
                rows, counts = called[row].unique(return_counts=True)
                answers[name] = shares(
                    {self.classes.names[r]: n for r, n in zip(rows.tolist(), counts.tolist(), strict=True)}
                )
        return Evaluation(scores, answers=answers)

    def _sample(self, classes: Sequence[str], most: int) -> list[int]:
        """Test images that stand for all of these classes, about as many of each."""
        return splits.spaced([self._by_class["test"].get(c, []) for c in classes], most)

    def part_of(self, batch: Images, items: Tensor) -> Images | None:
        chosen = items.nonzero().flatten().tolist()
        if not chosen:
            return None
        images = None if batch.images is None else batch.images[chosen]
        names, draws = [batch.names[i] for i in chosen], tuple(batch.draws[i] for i in chosen)
        return Images(images, batch.labels[chosen], names, draws, batch.part)

    def item_names(self, batch: Images) -> list[str]:
        return batch.names

    # ---- for records and reports -------------------------------------------------------------------------

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        """Test images of as many of the classes as possible, the same ones at every call."""
        picked = self._sample(classes, count)
        batch = self.pixels["test"][[Draw(i, None) for i in picked]]
        logits, _ = self.forward(model, [batch])
        share, rows = logits.float().softmax(-1).max(-1)
        items = []
        for i, p, row in zip(picked, share.tolist(), rows.tolist(), strict=True):
            item, answer = self.items["test"][i], self.classes.names[row]
            items.append(
                GalleryItem(
                    item.name, _thumbnail(item), item.label, f"{answer} ({100 * p:.0f} %)", answer == item.label
                )
            )
        return items

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        self.spec.classes = list(self.classes.names)
        build.save_folder(folder, self.spec)

    def describe(self) -> dict[str, Any]:
        c, found = self.config, [i.source for items in self.items.values() for i in items]
        files = fingerprint(Path(source) for source in found if isinstance(source, str))
        return {
            **({"files": files} if files else {}), "model": self.spec.name, "model_args": self.spec.args, "size": self.spec.size,
            "classes": list(self.classes.names),
            "images": {part: {n: len(v) for n, v in found.items()} for part, found in self._by_class.items()},
            "skipped": len(self.skipped), "augment": c.augment, "flip": c.flip, "crop": c.crop,
            "keep_aspect": c.keep_aspect, "label_smoothing": c.label_smoothing, **self.frozen.describe(),
            **({"subset": self.subset} if self.subset else {}), **({"eval_margin": True} if c.eval_margin else {}),
            **({"validation": c.validation} if c.validation else {}),
        }  # fmt: skip


def _positions(items: Sequence[Item]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        found.setdefault(item.label, []).append(i)
    return found


def _thumbnail(item: Item, side: int = 160) -> bytes:
    """PNG bytes of an image, its longer side `side` pixels."""
    image = item.open()
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return png(image.resize(size, Image.Resampling.BICUBIC))
