"""The detection domain: what the loop needs to know about images with boxes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import distributed, splits
from common.domain import Domain, Evaluation, GalleryItem, Matched, Prediction, Read, mean_of
from common.errors import UserError
from common.files import fingerprint
from common.frozen import NOTHING, Frozen, FrozenConfig, constant
from common.lazy import Module
from common.progress import in_threads, watched
from common.streams import Draw, Stream, derive, load_batches
from ks_detection import gallery
from ks_detection.checkpoints.export import export_official
from ks_detection.data import transforms
from ks_detection.data.folders import with_classes
from ks_detection.data.records import DetectionSet, ImageRecord, image_problem, told, without
from ks_detection.forgetting import miss_loss
from ks_detection.matched import by_class, labels_of, located, matched
from ks_detection.models.detectors import build_detector
from ks_detection.models.parts.boxes import xyxy_to_cxcywh
from ks_detection.models.parts.detector import Detector, extend_classes
from ks_detection.models.parts.padding import pad_maps
from ks_detection.scores import Found, Scores, Truth, called, coco_scores
from ks_detection.view import ImageConfig

ops, v2 = Module("torchvision.ops"), Module("torchvision.transforms.v2")
MODEL_FILE = "model.pth"  # in model/ of a run that trains all weights


class ImageBatch(NamedTuple):
    """A batch: normalised images [3, h, w], what is on them, file names, image numbers.

    targets: per image labels [T] (logit rows), boxes [T, 4] and ignore [K, 4], both cxcywh in 0..1.
    keys: stand for picture and view, where the view repeats; else None.
    """

    images: list[Tensor]
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    names: list[str]
    indices: list[int]
    keys: list[bytes | None]


class DetectionDomain(Domain):
    """Images with boxes, scored by COCO average precision.

    Args:
        base: the base model, a detector with `class_table`; its rows come before those of new classes.
        data: training and test images of all classes of the plan.
        groups: {"learn", "forget", "retain", ...} -> class names, which decide the share of images used.
        config: see `ImageConfig`.
        seed: decides which training images a share holds.
        training: whether training images are needed at all.
        half: whether `save_folder` stores floats in float16.
        frozen: what is kept of parts that do not train.
    """

    name = "detection"
    exclusive = plain_loss = cosine_rows = False  # sigmoids with a focal loss
    metric = "map"
    metric_label = "COCO AP (%)"
    meaning = (
        "average precision over ten demands on how closely a box fits (IoU 0.50 to 0.95): 100 where every object is found, "
        "named rightly and outlined closely, without false alarms"
    )
    answered = "test objects"
    recovery = "AP50"
    curve_axes = ("recall", "precision at IoU 0.5")

    def __init__(
        self,
        base: nn.Module,
        data: DetectionSet,
        groups: dict[str, Sequence[str]],
        config: ImageConfig,
        seed: int = 0,
        training: bool = True,
        half: bool = False,
        frozen: FrozenConfig = NOTHING,
    ) -> None:
        self.base, self.config, self.seed, self.groups, self.half = base, config, seed, groups, half
        self.recipe = config.recipe()
        wanted = [c for classes in groups.values() for c in classes]
        self.classes = base.class_table.extended(wanted)
        train = without(data.train, splits.read_list(config.without))
        self.records = {"train": train, "test": data.test} if training else {"test": data.test}
        self.frozen = Frozen(frozen, "detection", config.test_size, config.longest)
        self._digests: dict[str | int, bytes] = {}
        self._transforms = {
            True: transforms.train_transform(self.recipe),
            False: transforms.test_transform(self.recipe),
        }
        self._decoded: dict[tuple[bool, int], Tensor] = {}
        self._room = config.keep_decoded * 2**20
        self._check_classes(wanted, data)
        self._used = self._choose() if training else {}
        self._check_images()

    def _all_used(self) -> list[ImageRecord]:
        wanted = [c for classes in self.groups.values() for c in classes]
        used = [self.records["train"][i] for i in sorted(set().union(*self._used.values()))]
        return used + [self.records["test"][i] for i in self._showing(wanted, "test")]

    def _check_images(self) -> None:
        """Looks at the file of every image that is used, before the first step. Raises UserError."""
        every = list({(r.path, r.width, r.height): r for r in self._all_used() if r.path is not None}.values())
        told([problem for problem in in_threads(image_problem, every, "checking images") if problem])

    def _check_classes(self, wanted: list[str], data: DetectionSet) -> None:
        for part, records in self.records.items():
            shown = {a.label for record in records for a in record.annotations if not a.crowd}
            missing = [name for name in wanted if name not in shown]
            if missing:
                part = "training" if part == "train" else part
                left = f" but those that `--without {self.config.without}` leaves out" if self.config.without else ""
                raise UserError(
                    f"there is no {part} image with class {missing[0]!r}{left}; the data has: {splits.shorten(data.classes)}."
                )

    # ---- which images -----------------------------------------------------------------------------------

    def _choose(self) -> dict[str, set[int]]:
        """Class name -> training images that a phase on it may use."""
        shares = {"learn": self.config.learn_fraction, "forget": self.config.forget_fraction}
        used: dict[str, set[int]] = {}
        for group, classes in self.groups.items():
            showing = self._showing(classes, "train")
            fraction = shares.get(group, self.config.retain_fraction)
            picked = splits.subset([0] * len(showing), self.seed, fraction) if fraction != 1 else range(len(showing))
            used |= {name: {showing[p] for p in picked} for name in classes}
        return used

    def _showing(self, classes: Sequence[str], part: str) -> list[int]:
        """Numbers of the images with an object of the classes that the rule for mixed images admits."""
        wanted = set(classes)
        found = {id(p) for p in with_classes(self.records[part], wanted)}
        if self.config.mixed == "exclude" and part == "train":
            found -= {id(p) for p in self.records[part] if any(a.label not in wanted for a in p.annotations)}
            if not found:
                raise UserError(
                    f"--mixed exclude leaves no training image of {splits.shorten(list(classes))}: all show other classes too."
                )
        return [i for i, record in enumerate(self.records[part]) if id(record) in found]

    def _indices(self, classes: Sequence[str], train: bool) -> list[int]:
        if not train:
            return self._showing(classes, "test")
        allowed = set().union(*(self._used.get(name, set()) for name in classes))
        return [i for i in self._showing(classes, "train") if i in allowed]

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        return len(self._indices(classes, train))

    # ---- the model ---------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> nn.Module:
        model = copy.deepcopy(self.base) if pretrained else build_detector(copy.deepcopy(self.base.config))
        model = extend_classes(model, len(self.classes))
        model.class_table = self.classes
        return model

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        return model.adapter_targets()

    def freeze(self, model: nn.Module, like: nn.Module | None = None, again: bool = False) -> None:
        like = model if like is None else like
        split = self.frozen.on and type(like).decode is not Detector.decode  # else it has no backbone of its own
        model.frozen_stages = constant(like, [(like.backbone,)]) if split else 0

    def saved(self) -> dict[str, float]:
        return self.frozen.counts()

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        return dict.fromkeys(model.class_parameters(), self.classes.rows(classes))

    # ---- batches -----------------------------------------------------------------------------------------

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[ImageBatch]:
        indices, wanted = self._indices(classes, train), frozenset(classes)
        if stream is None:
            return self._ordered(indices, wanted, train)
        return load_batches(stream, indices, partial(self._batch, wanted=wanted, train=True), self.config.workers)

    def _ordered(self, indices: Sequence[int], wanted: frozenset[str], train: bool) -> Iterator[ImageBatch]:
        """One pass over this rank's share of some images, those of one shape together."""
        ratio = {i: self._record(i, train).width / self._record(i, train).height for i in indices}
        share = sorted(indices, key=ratio.__getitem__)[distributed.rank() :: distributed.world()]
        size = self.config.eval_batch
        chunks = ([Draw(i, None) for i in share[k : k + size]] for k in range(0, len(share), size))
        return (self._batch(chunk, wanted, train) for chunk in chunks)

    def _record(self, index: int, train: bool) -> ImageRecord:
        return self.records["train" if train else "test"][index]

    def _pixels(self, index: int, train: bool) -> Tensor:
        """uint8 [3, H, W], kept in memory while there is room."""
        found = self._decoded.get((train, index))
        if found is None:
            found = v2.functional.pil_to_tensor(self._record(index, train).open())
            if found.numel() <= self._room:
                self._room -= found.numel()
                self._decoded[train, index] = found
        return found

    def _batch(self, draws: list[Draw], wanted: frozenset[str], train: bool) -> ImageBatch:
        return collate([self.item(draw, wanted, train) for draw in draws])

    def item(self, draw: Draw, wanted: frozenset[str], train: bool) -> tuple:
        """(image, size, target, name, index, key) of one record."""
        record = self._record(draw.index, train)
        annotations = [t for t in record.annotations if not t.crowd and t.label in self.classes.names]
        if self.config.mixed == "remove":
            annotations = [t for t in annotations if t.label in wanted]
        boxes = torch.tensor([t.box for t in annotations], dtype=torch.float32).view(-1, 4)
        labels = torch.tensor([self.classes.row(t.label) for t in annotations], dtype=torch.long)
        other = torch.tensor([t.label not in wanted for t in annotations], dtype=torch.bool)
        random = draw.seed is not None and self.config.augment and train
        pixels, seed = self._pixels(draw.index, train), draw.seed if random else None
        views, key = self.frozen.config.views, None
        if self.frozen.on and (not random or views):
            picture = self._digest(record, pixels)
            key = picture if seed is None else derived(picture, seed % views, self.recipe)
            seed = seed if seed is None else derive(0, "view", key)
        image, boxes, labels, other = transforms.apply(self._transforms[random], pixels, boxes, labels, other, seed)
        height, width = image.shape[-2:]
        boxes = xyxy_to_cxcywh(boxes) / torch.tensor([width, height, width, height])
        target = {"labels": labels[~other], "boxes": boxes[~other], "ignore": boxes[other]}
        return image, (height, width), target, record.name, draw.index, key

    def _digest(self, record: ImageRecord, pixels: Tensor) -> bytes:
        """Stands for a picture: its pixels, for names and paths repeat from data set to data set."""
        name = str(record.path) if record.path is not None else id(record)
        if name not in self._digests:
            self._digests[name] = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
        return self._digests[name]

    def item_names(self, batch: ImageBatch) -> list[str]:
        return batch.names

    # ---- forward and scores ------------------------------------------------------------------------------

    def forward(self, model: nn.Module, batch: ImageBatch, targets: list[dict] | None = None) -> dict:
        """The detector's outputs on a batch; the maps of a backbone that never changes come from the cache.

        For these each image runs through the backbone alone. Near the edge of a padded batch that differs a little, so
        that batches of unequal images do so with --fast only.
        """
        device, keys = next(model.parameters()).device, [key for key in batch.keys if key is not None]
        fits = len(keys) == len(batch.images) and (self.frozen.config.fast or len(set(batch.sizes)) == 1)
        parts = [(model.backbone,)] if fits and getattr(model, "frozen_stages", 0) else []
        if not parts or not self.frozen.usable(model, parts):
            return model([image.to(device) for image in batch.images], targets)

        def compute(positions: list[int]) -> list[list[Tensor]]:
            return [[level[0] for level in model.maps(batch.images[i][None].to(device))] for i in positions]

        maps = self.frozen.outputs(model, parts, keys, compute)
        return model.decode(*pad_maps([[m.float() for m in levels] for levels in maps], batch.sizes, device), targets)

    def predict(self, model: nn.Module, batch: ImageBatch) -> Prediction:
        return self._predict(model, batch, "both")

    def predict_together(
        self, model: nn.Module, batches: Sequence[ImageBatch], read: Sequence[Read] = ()
    ) -> list[Prediction]:
        read = read or ["both"] * len(batches)
        return [self._predict(model, batch, one) for batch, one in zip(batches, read, strict=True)]

    def _predict(self, model: nn.Module, batch: ImageBatch, read: Read) -> Prediction:
        device = next(model.parameters()).device
        targets = [{name: value.to(device) for name, value in target.items()} for target in batch.targets]
        criterion = model.criterion()
        outputs = self.forward(model, batch, None if read == "items" and model.targets_only_train else targets)
        if read == "items":
            items, loss, reversible = criterion.last_matches(outputs, targets), None, None
        else:
            terms, items = criterion.with_matches(outputs, targets)
            loss = criterion.total(terms)
            reversible = criterion.classification(terms) if self.config.forget_part == "class" else None
        scores = outputs["pred_logits"].float()[items.rows, items.queries]
        embedding = outputs["queries"].float()[items.rows, items.queries]
        labels = labels_of(targets, items)
        missed = None if read == "loss" else miss_loss(outputs, targets, items)
        return Prediction(mean_of(missed) if loss is None else loss, scores, embedding, labels, missed, reversible)

    def pictures(
        self, classes: Sequence[str], *, train: bool, most: int
    ) -> Iterator[tuple[ImageBatch, dict[str, ImageBatch]]]:
        first = {name: set(self._indices([name], train)[:most]) for name in classes}
        for batch in self._ordered(sorted(set().union(*first.values())), frozenset(classes), train):
            targets = by_class(batch.targets, batch.indices, first, self.classes)
            yield batch, {name: batch._replace(targets=own) for name, own in targets.items()}

    def outputs_of(self, model: nn.Module, batch: ImageBatch) -> dict:
        return self.forward(model, batch)

    def matched(self, model: nn.Module, batch: ImageBatch, outputs: dict) -> Matched:
        return matched(model, outputs, batch.targets)

    def located(self, model: nn.Module, batch: ImageBatch, outputs: dict) -> Tensor:
        return located(outputs, batch.targets)

    def confidence(self, scores: Tensor) -> Tensor:
        return scores.sigmoid().amax(-1)

    def detect(
        self, model: nn.Module, classes: Sequence[str], chosen: Sequence[int] | None = None
    ) -> tuple[list[Truth], list[Found]]:
        """Objects and detections of test images, all with the classes or the chosen ones, over all ranks, in pixels."""
        own: list[tuple[Truth, Found]] = []
        chosen = self._indices(classes, train=False) if chosen is None else chosen
        count = -(-len(chosen) // (self.config.eval_batch * distributed.world()))
        for batch in watched(self._ordered(chosen, frozenset(classes), train=False), count, "scoring"):
            outputs = self.forward(model, batch)
            records = [self._record(i, False) for i in batch.indices]
            sizes = [(record.height, record.width) for record in records]
            for record, found in zip(records, model.post_process(outputs, sizes), strict=True):
                annotations = [(t.label, t.box, t.crowd) for t in record.annotations]
                labels = [self.classes.names[row] for row in found["labels"].tolist()]
                answer = Found(found["scores"].tolist(), labels, found["boxes"].tolist())
                own.append((Truth(record.name, record.width, record.height, annotations), answer))
        every = [pair for part in distributed.gather(own) for pair in part]
        return [truth for truth, _ in every], [found for _, found in every]

    def scores(self, model: nn.Module, classes: Sequence[str]) -> Scores:
        """All COCO scores over `classes`, on the test images that show one of them."""
        return coco_scores(*self.detect(model, classes), classes)

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        return self.scores(model, classes).evaluation().scores

    def evaluate_groups(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], most: int = 0
    ) -> dict[str, Evaluation]:
        """Each test image goes through the detector once; a group is scored on the images that show it."""
        chosen = None
        if most:
            chosen = sorted({i for own in groups.values() for i in splits.spaced([self._showing(own, "test")], most)})
        truths, found = self.detect(model, [name for classes in groups.values() for name in classes], chosen)
        result = {}
        for group, classes in groups.items():
            own = [i for i, truth in enumerate(truths) if truth.shows(classes)]
            mine = [truths[i] for i in own], [found[i] for i in own], classes
            result[group] = coco_scores(*mine).evaluation()._replace(answers=called(*mine, gallery.THRESHOLD))
        return result

    # ---- for records and reports -------------------------------------------------------------------------

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        picked = self._showing(classes, "test")[:count]
        wanted = frozenset(classes)
        items = []
        for index in picked:
            batch = self._batch([Draw(index, None)], wanted, train=False)
            record = self._record(index, False)
            outputs = self.forward(model, batch)
            (found,) = model.post_process(outputs, [(record.height, record.width)], gallery.THRESHOLD)
            items.append(gallery.item(record, found, self.classes.names, wanted))
        return items

    def sightings(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        wanted, items = frozenset(classes), []
        for index in self._showing(classes, "test")[:count]:
            batch = self._batch([Draw(index, None)], wanted, train=False)
            record, outputs = self._record(index, False), self.forward(model, batch)
            (found,) = model.post_process(outputs, [(record.height, record.width)])
            truths = [t for t in record.annotations if t.label in wanted and not t.crowd]
            covers = ops.box_iou(torch.tensor([t.box for t in truths]).to(found["boxes"]), found["boxes"])
            best = gallery.surest(covers, found["scores"])
            chosen = {key: value[best] for key, value in found.items()}
            overlaps = covers.gather(1, best[:, None])[:, 0].tolist()
            items.append(gallery.sighting(record, truths, chosen, overlaps, self.classes.names))
        return items

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        export_official(model, folder / MODEL_FILE, self.classes, half=self.half)

    def describe(self) -> dict[str, Any]:
        keep = ("mixed", "forget_part", "augment", "flip", "sizes", "longest", "before_crop", "crop", "test_size", "learn_fraction",
                "forget_fraction", "retain_fraction")  # fmt: skip
        counts = {
            group: {part: len(self._indices(classes, part == "train")) for part in ("train", "test")}
            for group, classes in self.groups.items()
        }
        files = [(record.path, record.annotations) for record in self._all_used() if record.path is not None]
        found = fingerprint((path for path, _ in files), repr([annotations for _, annotations in files]))
        return {
            **({"files": found} if found else {}), "model": self.base.config.to_dict(), "classes": list(self.classes.names), "ids": list(self.classes.ids),
            "images": counts, **self.frozen.describe(), **({"without": self.config.without} if self.config.without else {}), **{key: getattr(self.config, key) for key in keep},
        }  # fmt: skip


def derived(picture: bytes, view: int, recipe: transforms.Recipe) -> bytes:
    """Stands for an augmented view of a picture."""
    return hashlib.blake2b(picture + repr((view, recipe)).encode(), digest_size=16).digest()


def collate(items: list[tuple]) -> ImageBatch:
    """A batch of `DetectionDomain.item`s."""
    return ImageBatch(*(list(column) for column in zip(*items, strict=True)))
