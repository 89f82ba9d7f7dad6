"""The segmentation domain: what the loop needs to know about images with class-id masks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import distributed, splits
from common.domain import ClassTable, Domain, Evaluation, GalleryItem, Matched, Prediction, Read, mean_of
from common.errors import UserError
from common.files import fingerprint
from common.frozen import NOTHING, Frozen, FrozenConfig, constant
from common.knobs import Checked, knob
from common.progress import watched
from common.streams import Draw, Stream, derive, load_batches
from ks_segmentation.checkpoints.record import save_config
from ks_segmentation.data.augment import scoring_view, train_view
from ks_segmentation.data.masks import IGNORE, check_count
from ks_segmentation.data.scan import picture_key, scan
from ks_segmentation.data.sets import Item, MaskItem, MaskSet
from ks_segmentation.forgetting import miss_loss
from ks_segmentation.gallery import shown, sighting
from ks_segmentation.matched import by_class, located, matched
from ks_segmentation.models.parts.segmenter import Outputs, Rows, Segmenter
from ks_segmentation.models.parts.targets import UNKNOWN
from ks_segmentation.scores import Confusion, Scores

OTHERS = ("unknown", "background", "drop")


@dataclass
class MaskConfig(Checked):
    """Masks: how images are read, augmented and scored."""

    others: str = knob(
        "unknown",
        "pixels of other groups' classes while training: unknown (a query that covers them is not blamed), background "
        "(published: it is told 'no object'), drop (leave such images out)",
        OTHERS,
    )
    without: str = knob("", "training images with a pixel of these classes are not used: a,b,c or @file")
    augment: bool = knob(True, "train on random scales, crops, colours and mirror images")
    eval_batch: int = knob(1, "test images per batch; those of one size are joined", least=1, most=65_536)
    workers: int = knob(0, "processes that prepare batches; 0 does it in this one", least=0, most=256)
    test_limit: int = knob(0, "score on at most so many test images; 0 uses all", least=0)
    cache_dir: str = knob("data", "where the list of classes per mask is kept")


class Scenes(NamedTuple):
    """A batch: normalised images [B, 3, H, W], label rows [B, H, W], file names; whether the images come again."""

    images: Tensor
    labels: Tensor
    names: list[str]
    repeat: bool = False


class Known(NamedTuple):
    """One image of the data: its item, the row of each of its set's classes (-1: none), the rows in its mask."""

    item: Item
    rows: np.ndarray
    present: frozenset[int]


class SegmentationDomain(Domain):
    """Pictures whose every pixel has a class, scored by mean intersection over union.

    Args:
        base: the pretrained model; its first rows are `known`.
        known: names of the classes that the base model knows, in the order of its rows.
        sets: the data; classes are the same when their names are.
        groups: {"learn", "forget", "retain", ...} -> class names.
        config: see `MaskConfig`.
        seed: of the random start of a model that is not pretrained.
        training: False leaves the training images unread.
        frozen: what is kept of parts that do not train.
    """

    name = "segmentation"
    plain_loss = False  # "no object" weighs less
    exclusive = False  # scores are those of one query, while all queries answer a segment
    metric = "miou"
    metric_label = "mean IoU (%)"
    meaning = (
        "for every class the share of pixels on which truth and answer agree, out of those that either gives to the class; "
        "then the mean over classes"
    )
    answered = "test pixels"
    recovery = ""

    def __init__(
        self, base: Segmenter, known: Sequence[str], sets: Sequence[MaskSet], groups: dict[str, Sequence[str]],
        config: MaskConfig, seed: int = 0, training: bool = True, frozen: FrozenConfig = NOTHING,
    ) -> None:  # fmt: skip
        self.frozen = Frozen(frozen, "segmentation")
        self.base, self.config, self.seed = base, config, seed
        wanted = [c for classes in groups.values() for c in classes]
        self.classes = ClassTable(tuple(known)).extended(wanted)
        spare = [f"spare_{i}" for i in range(len(self.classes), base.num_classes)]
        self.classes = self.classes.extended(spare)
        check_count(len(self.classes), "the model and the data")
        offered = [c for s in sets for c in s.classes]
        missing = [c for c in wanted if c not in offered]
        if missing:
            raise UserError(f"no mask can hold class {missing[0]!r}; the data has: {splits.shorten(offered)}.")
        self.wanted = frozenset(self.classes.rows(wanted))
        self.train_items = self._known(sets, "train") if training else []
        self.test_items = self._known(sets, "test")
        if config.test_limit:
            self.test_items = self.test_items[:: max(1, len(self.test_items) // config.test_limit)][: config.test_limit]
        parts = {"training": self.train_items} if training else {}
        for part, items in {**parts, "test": self.test_items}.items():
            empty = [c for c in wanted if not any(self.classes.row(c) in i.present for i in items)]
            if empty:
                raise UserError(f"class {empty[0]!r} is in no {part} mask.")

    def _known(self, sets: Sequence[MaskSet], part: str) -> list[Known]:
        found = []
        unwanted = set(splits.read_list(self.config.without)) if part == "train" else set()
        for one in sets:
            rows = np.array([self.classes.row(c) if c in self.classes.names else -1 for c in one.classes])
            items = getattr(one, part)
            for item, counts in zip(items, scan(items, self.config.cache_dir), strict=True):
                present = frozenset(int(rows[c]) for c in counts) - {-1}
                if present & self.wanted and not any(one.classes[c] in unwanted for c in counts):
                    found.append(Known(item, rows, present))
        return found

    # ---- which images ----------------------------------------------------------------------------------

    def _indices(self, classes: Sequence[str], train: bool) -> list[int]:
        rows = set(self.classes.rows(classes))
        items = self.train_items if train else self.test_items
        alone = train and self.config.others == "drop"
        found = [
            i for i, k in enumerate(items) if k.present & rows and not (alone and (k.present & self.wanted) - rows)
        ]
        if not found:
            raise UserError(
                f"no image is left for {splits.shorten(classes)}; with --others drop every one holds other classes."
            )
        return found

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return len(self._indices(classes, train))

    def labels_of(self, known: Known, classes: Sequence[str], other: int, ids: np.ndarray | None = None) -> np.ndarray:
        """[H, W] int64 rows of `classes`; pixels of other classes become `other`, those of none stay IGNORE.

        ids: the item's mask, where it has been read.
        """
        keep = set(self.classes.rows(classes))
        table = np.full(IGNORE + 1, other, np.int64)
        table[IGNORE] = IGNORE
        for index, row in enumerate(known.rows):
            if row in keep:
                table[index] = row
        return table[known.item.ids() if ids is None else ids]

    # ---- the model ---------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> Segmenter:
        if pretrained:
            model = copy.deepcopy(self.base)
        else:
            torch.manual_seed(self.seed)
            model = self.base.fresh()
        if len(self.classes) != model.num_classes:
            model.set_rows(range(model.num_classes), len(self.classes) - model.num_classes)
        return model

    def lora_targets(self, model: Segmenter) -> dict[str, list[str]]:
        return model.adapter_targets()

    def head_rows(self, model: Segmenter, classes: Sequence[str]) -> dict[str, list[int]]:
        return dict.fromkeys(model.class_parameters(), self.classes.rows(classes))

    # ---- batches -----------------------------------------------------------------------------------------

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Scenes]:
        indices = self._indices(classes, train)
        if stream is None:
            return self._in_order(indices[distributed.rank() :: distributed.world()], classes, train)
        return load_batches(stream, indices, partial(self._train_batch, classes=tuple(classes)), self.config.workers)

    def _train_batch(self, draws: list[Draw], classes: Sequence[str]) -> Scenes:
        scenes = self._collate([self._train_scene(draw, classes) for draw in draws])
        return scenes._replace(repeat=not self.config.augment or bool(self.frozen.config.views))

    def _tensors(self, known: Known, classes: Sequence[str], other: int) -> tuple[Tensor, Tensor]:
        """Image [3, H, W] uint8 and labels [H, W]."""
        pixels, ids = known.item.pair()
        labels = self.labels_of(known, classes, other, ids)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)

    def _train_scene(self, draw: Draw, classes: Sequence[str]) -> tuple[Tensor, Tensor, str]:
        known = self.train_items[draw.index]
        other = UNKNOWN if self.config.others == "unknown" else IGNORE
        image, labels = self._tensors(known, classes, other)
        settings = self.base.config.INPUT
        if self.config.augment:  # a draw without a seed: always the same crop, as images of a batch share a size
            seed = draw.index if draw.seed is None else draw.seed
            if self.frozen.config.views:
                seed = derive(0, "view", known.item.name, seed % self.frozen.config.views)
            image, labels = train_view(image, labels, settings, seed, IGNORE)
        return image, labels, known.item.name

    def _in_order(self, indices: Sequence[int], classes: Sequence[str], train: bool) -> Iterator[Scenes]:
        """Batches of images of one size, labels at their original size."""
        waiting: list[tuple[Tensor, Tensor, str]] = []
        for index in indices:
            known = (self.train_items if train else self.test_items)[index]
            image, labels = self._tensors(known, classes, IGNORE)
            scene = (scoring_view(image, self.base.config.INPUT), labels, known.item.name)
            full = len(waiting) == self.config.eval_batch
            if waiting and (full or scene[0].shape != waiting[0][0].shape or scene[1].shape != waiting[0][1].shape):
                yield self._collate(waiting)
                waiting = []
            waiting.append(scene)
        if waiting:
            yield self._collate(waiting)

    def _collate(self, scenes: Sequence[tuple[Tensor, Tensor, str]]) -> Scenes:
        images, labels, names = zip(*scenes, strict=True)
        if len({i.shape for i in images}) > 1:
            raise UserError(
                "training images of one batch differ in size; turn INPUT.CROP.ENABLED on, or --batch-size 1."
            )
        normalised = self.base.normalise(torch.stack(images).to(self.base.pixel_mean.device))
        return Scenes(normalised, torch.stack(labels), list(names), repeat=True)

    def freeze(self, model: Segmenter, like: Segmenter | None = None, again: bool = False) -> None:
        like = model if like is None else like
        part = like.frozen_part() if self.frozen.on else ()
        model.frozen_stages = constant(like, [part]) if part else 0  # type: ignore[assignment]

    # ---- forward and scores ------------------------------------------------------------------------------

    def saved(self) -> dict[str, float]:
        return self.frozen.counts()

    def outputs(self, model: Segmenter, images: Tensor, repeat: bool = True) -> Outputs:
        """The model's outputs; what never changes of it comes from the cache, for images that come again."""
        parts = [model.frozen_part()] if repeat and getattr(model, "frozen_stages", 0) else []
        if not parts or not self.frozen.usable(model, parts):
            return model(images)

        def compute(positions: list[int]) -> list[tuple[Tensor, ...]]:
            return list(zip(*model.features(images[positions]), strict=True))

        keys = [picture_key(image) for image in images]
        found = zip(*self.frozen.outputs(model, parts, keys, compute), strict=True)
        return model.from_features([torch.stack(one).to(images.device).float() for one in found])

    def predict(self, model: Segmenter, batch: Scenes) -> Prediction:
        return self.predict_together(model, [batch])[0]

    def predict_together(
        self, model: Segmenter, batches: Sequence[Scenes], read: Sequence[Read] = ()
    ) -> list[Prediction]:
        """One forward pass on the joined batches where their images have one size; losses batch by batch."""
        device, read = next(model.parameters()).device, read or ["both"] * len(batches)
        if len({b.images.shape[-2:] for b in batches}) > 1:
            return [self.predict_together(model, [b], [one])[0] for b, one in zip(batches, read, strict=True)]
        images = torch.cat([b.images for b in batches]).to(device, non_blocking=True)
        outputs = self.outputs(model, images, all(b.repeat for b in batches))
        result, start = [], 0
        for batch, one in zip(batches, read, strict=True):
            part = slice(start, start + len(batch.images))
            start = part.stop
            result.append(self._prediction(model, model.part(outputs, part), batch.labels.to(device), one))
        return result

    def _prediction(self, model: Segmenter, outputs: Outputs, labels: Tensor, read: Read) -> Prediction:
        """One row per segment, and how well the whole model answers it."""
        total, rows = (None, model.rows(outputs, labels)) if read == "items" else model.judge(outputs, labels)
        missed = None if read == "loss" else self._missed(model, outputs, rows)
        classes = [one.target.classes[one.segment] for one in rows]
        scores, features = [one.scores for one in rows], [one.embedding for one in rows]
        loss = mean_of(missed) if total is None else total
        return Prediction(loss, *map(torch.cat, (scores, features, classes)), missed)

    def _missed(self, model: Segmenter, outputs: Outputs, rows: Sequence[Rows]) -> Tensor:
        """[N] how far the segment of each row is from being answered."""
        targets = [one.target for one in rows]
        lost = miss_loss(model.post_process(outputs, slice(None)), targets).split([len(t.classes) for t in targets])
        return torch.cat([own[one.segment] for own, one in zip(lost, rows, strict=True)])

    def pictures(self, classes: Sequence[str], *, train: bool, most: int) -> Iterator[tuple[Scenes, dict[str, Scenes]]]:
        """Whole pictures, of the training split too."""
        first = {name: set(self._indices([name], train)[:most]) for name in classes}
        chosen = sorted(set().union(*first.values()))
        for batch in self._in_order(chosen, classes, train):
            own, chosen = chosen[: len(batch.names)], chosen[len(batch.names) :]
            labels = by_class(batch.labels, own, first, self.classes)
            yield batch, {name: batch._replace(labels=one) for name, one in labels.items()}

    def outputs_of(self, model: Segmenter, batch: Scenes) -> Outputs:
        return self.outputs(model, batch.images.to(next(model.parameters()).device), batch.repeat)

    def matched(self, model: Segmenter, batch: Scenes, outputs: Outputs) -> Matched:
        return matched(model, outputs, batch.labels.to(next(model.parameters()).device))

    def located(self, model: Segmenter, batch: Scenes, outputs: Outputs) -> Tensor:
        return located(model, outputs, batch.labels)

    def confusions(self, model: Segmenter, groups: Mapping[str, Sequence[str]], most: int = 0) -> dict[str, Confusion]:
        """Pixel counts of each group on this rank's test images, each looked at once; a group's counts leave out
        the pixels of other classes. most: see `evaluate_groups`."""
        counts = {group: Confusion(self.classes.names, IGNORE) for group in groups}
        rows = {group: torch.tensor(self.classes.rows(classes)) for group, classes in groups.items()}
        device = next(model.parameters()).device
        together = list(dict.fromkeys(c for classes in groups.values() for c in classes))
        chosen = self._indices(together, train=False)
        if most:
            chosen = sorted(
                {i for own in groups.values() for i in splits.spaced([self._indices(own, train=False)], most)}
            )
        count = -(-len(chosen) // (self.config.eval_batch * distributed.world()))
        share = chosen[distributed.rank() :: distributed.world()]
        runner = _Kept(self, model) if getattr(model, "frozen_stages", 0) else model
        for batch in watched(self._in_order(share, together, train=False), count, "scoring"):
            sizes = [tuple(label.shape) for label in batch.labels]
            answers = runner.segment(batch.images.to(device), sizes)
            for answer, label in zip(answers, batch.labels, strict=True):
                answer = answer.cpu()
                for group, own in rows.items():
                    counts[group].add(answer, label.where(torch.isin(label, own), IGNORE))
        return counts

    def scores(self, model: Segmenter, groups: Mapping[str, Sequence[str]], most: int = 0) -> dict[str, Scores]:
        """mIoU, fwIoU, mACC, pACC and per-class values of each group on the test images, over all ranks."""
        device = next(model.parameters()).device
        return {group: counts.scores(device) for group, counts in self.confusions(model, groups, most).items()}

    def evaluate(self, model: Segmenter, classes: Sequence[str]) -> dict[str, float]:
        return self.evaluate_groups(model, {"": classes})[""].scores

    def evaluate_groups(
        self, model: Segmenter, groups: Mapping[str, Sequence[str]], most: int = 0
    ) -> dict[str, Evaluation]:
        return {group: found.evaluation(groups[group]) for group, found in self.scores(model, groups, most).items()}

    def save_folder(self, model: Segmenter, folder: Path) -> None:
        save_config(folder, model, self.classes.names)

    def item_names(self, batch: Scenes) -> list[str]:
        return batch.names

    def gallery(self, model: Segmenter, classes: Sequence[str], count: int) -> list[GalleryItem]:
        names = self.classes.names
        everything = [names[row] for row in sorted(self.wanted)]
        picked = self._holding(classes, count)
        return [shown(model, k.item, self.labels_of(k, everything, IGNORE), names) for k in picked]

    def sightings(self, model: Segmenter, classes: Sequence[str], count: int) -> list[GalleryItem]:
        picked = self._holding(classes, count)
        return [sighting(model, k.item, self.labels_of(k, classes, IGNORE), self.classes.names) for k in picked]

    def _holding(self, classes: Sequence[str], count: int) -> list[Known]:
        """Test images that hold as many of the classes as possible."""
        by_class = [[k for k in self.test_items if row in k.present] for row in self.classes.rows(classes)]
        picked: dict[str, Known] = {}
        for turn in range(min(count, len(self.test_items))):
            for found in by_class:
                if turn < len(found) and len(picked) < count:
                    picked.setdefault(found[turn].item.name, found[turn])
        return list(picked.values())

    def describe(self) -> dict[str, Any]:
        items = [known.item for known in (*self.train_items, *self.test_items)]
        places = [place for item in items if isinstance(item, MaskItem) for place in (item.image, item.mask)]
        files = fingerprint(place for place in places if isinstance(place, Path))
        return {
            **({"files": files} if files else {}), "config": self.base.config.plain(), "classes": list(self.classes.names), "others": self.config.others,
            "augment": self.config.augment, **self.frozen.describe(), **({"without": self.config.without} if self.config.without else {}),
            "images": {"train": len(self.train_items), "test": len(self.test_items)},
        }  # fmt: skip


class _Kept:
    """A segmenter whose forward is the domain's."""

    def __init__(self, domain: SegmentationDomain, model: Segmenter) -> None:
        self._domain, self._model = domain, model

    def __call__(self, images: Tensor) -> Outputs:
        return self._domain.outputs(self._model, images)

    def segment(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        return type(self._model).segment(self, images, sizes)  # type: ignore[arg-type]  # it is run like one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
