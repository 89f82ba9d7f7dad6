"""The protocol a domain fills in. Read this first, then `trainer.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from common import distributed
from common.errors import UserError
from common.names import check_names
from common.plan import Plan
from common.splits import shorten
from common.streams import Stream

Batch = Any  # the loop never looks inside
OVERLAP = 0.5  # IoU from which on a prediction covers an object or segment
USUAL_BATCH = 256  # up to here a batch may be larger than the data; its items then repeat


class Prediction(NamedTuple):
    """One forward pass.

    loss:      scalar, the domain's own supervised loss, mean over the batch.
    scores:    [N, C] class logits; row i belongs to annotated item i (image, object, segment), whichever model answers.
    embedding: [N, D] what the classifier reads, same rows.
    labels:    [N] logit row of the true class of each item.
    item_loss: [N] supervised loss of each item, or None where the loss does not split into items.
    reversible: scalar part of `loss` that a forget phase reverses while the rest is minimised as usual, or None
        where it reverses the whole (a detector may forget what an object is without moving its box).
    """

    loss: Tensor
    scores: Tensor
    embedding: Tensor
    labels: Tensor
    item_loss: Tensor | None = None
    reversible: Tensor | None = None


Read = Literal["both", "loss", "items"]  # which losses of a `Prediction` are read


def mean_of(losses: Tensor) -> Tensor:
    """The mean of item losses [N]; 0 where there are none."""
    return losses.sum() / max(1, len(losses))


class Matched(NamedTuple):
    """What a model says of items that share a picture: [N, C] logits and [N, D] embedding of the query of each."""

    scores: Tensor
    embedding: Tensor


@dataclass(frozen=True)
class ClassTable:
    """Class name <-> logit row; `ids` are the numbers a data set gives its classes (COCO ids), where it does."""

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_names("class", self.names)
        twice = sorted(n for n, count in Counter(self.names).items() if count > 1)
        if twice:
            raise UserError(f"class name {twice[0]!r} stands for two logit rows; names must differ.")

    def __len__(self) -> int:
        return len(self.names)

    def row(self, name: str) -> int:
        """The logit row of a class. Raises UserError for an unknown name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise UserError(f"unknown class {name!r}; there are: {', '.join(self.names)}.") from None

    def rows(self, names: Iterable[str]) -> list[int]:
        """The logit rows of several classes."""
        return [self.row(name) for name in names]

    def extended(self, new: Sequence[str]) -> ClassTable:
        """The same table with rows for `new` names behind the old ones (names it has already keep their row)."""
        known = set(self.names)
        return ClassTable(self.names + tuple(n for n in new if n not in known), self.ids)


class GalleryItem(NamedTuple):
    """One test picture for the report: what it shows, what the model says.

    name:    identifies the picture, so that answers before and after can be put side by side.
    picture: PNG or JPEG bytes, with boxes or masks drawn in where the domain draws them.
    truth, answer: short text; answer may carry a confidence ("cat 97 %").
    correct: whether the answer counts as right, or None where that is not yes or no.
    """

    name: str
    picture: bytes
    truth: str
    answer: str
    correct: bool | None


class Evaluation(NamedTuple):
    """What a domain finds out about a group of classes on the test split.

    scores:  {"total": score, class name: score, ...}, 0..100, in the domain's metric.
    figures: other scores of the same form by name ({"AP50": {"total": ..., class name: ...}}); for the report.
    curves:  class name -> what `Domain.curve_axes` names second, 0..1, over evenly spaced values of what it names
        first, from 0 to 1 (precision over recall); for the report.
    answers: class name -> what its test items (`Domain.answered`) are called -> their share, 0..1; `record.NOTHING` where the model
        answers with no class; for the report.
    """

    scores: dict[str, float]
    figures: dict[str, dict[str, float]] = {}
    curves: dict[str, list[float]] = {}
    answers: dict[str, dict[str, float]] = {}


class Domain(Protocol):
    """Everything the loop needs to know about a kind of task. Inherit from it to get the defaults."""

    name: str  # "classification"; names the folder under results/
    metric: str  # "acc", "map", "miou": what tables show
    metric_label: str  # "top-1 accuracy (%)": what axes show
    meaning: str = ""  # what the score is, in one sentence for readers who do not know it
    counted: bool = False  # the score is the share of test items that are right, so that their number gives an interval
    answered: str = "test items"  # what the answers of an `Evaluation` are counted in
    titles: Mapping[str, str] = {}  # what classes are called whose names are codes: "n02102040" -> "English springer"
    classes: ClassTable
    base: nn.Module | None = None  # what `build_model` copies; its weights and the frozen ones of a run are one memory
    exclusive: bool = True  # `scores` are a softmax over classes: an item has one class, and all classes compete for it
    plain_loss: bool = True  # the supervised loss is the cross-entropy of `scores`, label smoothing aside
    cosine_rows: bool = True  # the classifier's rows lie along the embeddings of their classes; rows of sigmoids do not
    pixel_deviation: Sequence[float] | None = None  # per channel of a batch's `images`, one item each; None: no such
    recovery: str | None = (
        None  # figure of an `Evaluation` that shows if objects are found again; "": its scores; None: no objects
    )
    curve_axes: tuple[str, str] = ("", "")  # what the curves of an `Evaluation` show: ("recall", "precision")

    def build_model(self, pretrained: bool = True) -> nn.Module:
        """The model with head rows for every class of the plan; `pretrained=False` starts it at random."""
        ...

    def lora_targets(self, model: nn.Module) -> dict[str, list[str]]:
        """Position ("ffn", "attention") -> names of the modules that adapters can go on."""
        ...

    def head_rows(self, model: nn.Module, classes: Sequence[str]) -> dict[str, list[int]]:
        """Parameter name -> rows that belong to `classes` (head weight, bias, label embedding, ...)."""
        ...

    def size(self, classes: Sequence[str], *, train: bool) -> int:
        """Number of items (images) that `loader` draws from for these classes."""
        ...

    def whole_size(self, classes: Sequence[str]) -> int:
        """Number of training items of these classes before a share of them was drawn."""
        return self.size(classes, train=True)

    def weight(self, classes: Sequence[str]) -> int:
        """What the score of a group counts where several are pooled: classes for a mean over classes, else items."""
        return len(classes)

    def loader(self, classes: Sequence[str], *, train: bool, stream: Stream | None = None) -> Iterable[Batch]:
        """Batches of the union of `classes`.

        train: exactly the batches of draws that `stream.batches(self.size(classes, train=True))` gives (endless,
        or one pass for streams.Ordered); a draw without a seed always gives the same view. Otherwise one
        ordered pass over this rank's share of the test split.
        """
        ...

    def freeze(self, model: nn.Module, like: nn.Module | None = None, again: bool = False) -> None:
        """Called when it is known what trains: notes on the model which first part of it never changes (`common.frozen`).

        like: a model whose adapters tell it, for one that has none. again: whether every training view will be drawn
            again, by another run of the loop with the same seed.
        """
        return

    def saved(self) -> dict[str, float]:
        """How many outputs of what does not train this process read from the cache, and computed; {} where none are kept."""
        return {}

    def shown(self, batch: Batch) -> Batch:
        """The batch with its pictures, where the loader left them out."""
        return batch

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """One forward pass with gradients."""
        ...

    def pictures(
        self, classes: Sequence[str], *, train: bool, most: int
    ) -> Iterable[tuple[Batch, Mapping[str, Batch]]] | None:
        """Batches in which every picture comes once, however many of the classes it shows, without augmentation.

        Beside each batch, by class, the same batch as if it showed only the items of this class, and those only on the
        first `most` pictures of the class. None where an item is the whole picture.
        """
        return None

    def outputs_of(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of one forward pass, of which `matched` and `located` read; where `pictures` gives some."""
        raise TypeError(f"{self.name}: an item is the whole picture")

    def matched(self, model: nn.Module, batch: Batch, outputs: Any) -> Matched:
        """The rows of the annotated items of a batch, matched as in `predict`, picture by picture."""
        raise TypeError(f"{self.name}: an item is the whole picture")

    def located(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor:
        """[N, 3] how well what the model finds covers each annotated item: the best IoU, 0..1, of any prediction
        whatever it is called, and of those called by the item's class; and the row by which the surest prediction that
        covers it is called, one behind the last for "no object"."""
        raise TypeError(f"{self.name}: an item is the whole picture")

    def sightings(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        """Up to `count` test pictures of `classes`, in each the surest predictions that cover the items, whatever they
        are called; `correct` tells whether all are called right. Empty where an item is the whole picture."""
        return []

    def seen(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """[N, ...] what reaches the part of the model that knows classes: pixels, or the output of a frozen stem. None
        where an item is not the whole picture."""
        return None

    def confidence(self, scores: Tensor) -> Tensor:
        """[N] how sure [N, C] scores are of their best class, 0..1."""
        return scores.softmax(-1).amax(-1)

    def predict_together(
        self, model: nn.Module, batches: Sequence[Batch], read: Sequence[Read] = ()
    ) -> list[Prediction]:
        """`predict` for several batches; a domain whose batches can be joined does it in one forward.

        read: for every batch which of its losses will be read; the other one may be left out where it costs time. Where
            only items are, `loss` is their mean; where the loss is, `item_loss` may be None. Empty: both are.
        """
        return [self.predict(model, batch) for batch in batches]

    def evaluate(self, model: nn.Module, classes: Sequence[str]) -> dict[str, float]:
        """{"total": score, class name: score, ...} on the test split, 0..100, over all ranks."""
        ...

    def evaluate_groups(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], most: int = 0
    ) -> dict[str, Evaluation]:
        """`evaluate` of several groups, with all there is to tell; a domain whose groups share pictures sees each once.

        most: at most about so many test items of each group, the same ones at every call; 0 takes all. A domain that
            takes all or none gives {}.
        """
        return {} if most else {group: Evaluation(self.evaluate(model, own)) for group, own in groups.items()}

    def test_scores(self, model: nn.Module, classes: Sequence[str]) -> dict[str, Tensor]:
        """Class -> [N, C] scores of its test items, over all ranks; {} where classes do not exclude one another."""
        if not (self.exclusive and classes):
            return {}
        found: dict[str, list[Tensor]] = {c: [] for c in classes}
        own = []
        for batch in self.loader(classes, train=False):
            prediction = self.predict(model, batch)
            own.append((prediction.scores.float().cpu(), prediction.labels.cpu()))
        for scores, labels in (pair for rank in distributed.gather(own) for pair in rank):
            for name, row in zip(classes, self.classes.rows(classes), strict=True):
                found[name].append(scores[labels == row])
        return {name: torch.cat(parts) for name, parts in found.items() if parts}

    def part_of(self, batch: Batch, items: Tensor) -> Batch | None:
        """The batch with some of its items only, [N] bool; None where it has none, or cannot be divided."""
        return None

    def item_names(self, batch: Batch) -> list[str]:
        """File names of a batch, for error messages."""
        ...

    def gallery(self, model: nn.Module, classes: Sequence[str], count: int) -> list[GalleryItem]:
        """Up to `count` test pictures of `classes`, the same ones at every call; may be empty."""
        return []

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        """Adds to a folder with whole weights what is needed to build the model again; for methods that train all."""

    def describe(self) -> dict[str, Any]:
        """What a record must hold to repeat the run: data folders, image counts, model name, split."""
        return {}

    def documents(self) -> dict[str, Any]:
        """File name -> content of JSON files that a run folder keeps: lists too long for `describe`, such as the split."""
        return {}


def train_and_test(data: Any, names: Sequence[str]) -> tuple[Any, Any, list[str]]:
    """(training Dataset, test Dataset, names of the labels) of Datasets given from Python.

    names: of the labels, in order; by default the Datasets' own `classes`.

    Raises:
        UserError: no pair.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(f"`data` is a path or a pair (train, test) of Datasets, got {type(data).__name__}.")
    return *data, list(names or getattr(data[0], "classes", ()))


def check_items(domain: Domain, plan: Plan, batch_size: int) -> None:
    """Raises UserError for a phase without training items, or for a batch far larger than what there is."""
    for phase in plan.phases:
        sizes = {part: domain.size(part, train=True) for part in (phase.target, phase.keep) if part}
        for part, size in sizes.items():
            if size == 0:
                raise UserError(f"there are no training items of {shorten(part, 8)}, which phase {phase.title} needs.")
        if batch_size > max(sum(sizes.values()), USUAL_BATCH):
            raise UserError(
                f"`--batch-size {batch_size}` is more than the {sum(sizes.values())} training items of phase {phase.title}."
            )
