"""What a model answers and what its features are, on training and test items of named classes, as arrays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.domain import Batch, Domain
from common.features import watched
from common.record import write_bytes
from common.streams import Ordered, derive, seed_all

EMBEDDING = "embedding"
FORM = 6  # of the arrays on disk; another one is made anew
OTHERS = ("labels", "logits", "confidence", "located")  # what a part holds besides features


@dataclass
class Part:
    """One split: an item is an annotated thing (image, object, segment).

    labels:   [N] position in the list of classes that was asked for.
    logits:   [N, C], the columns of those classes first and in their order.
    confidence: [N] how sure the best class is, 0..1.
    located:  [M, 4], of the forgotten classes' test items: label, the best IoU of any prediction with the item, the same of those called by its class, and the
        column by which the surest that covers it is called (C: "no object"); M is 0 where items are whole pictures.
    features: block name -> [N, D], the last one "embedding", which the classifier reads.
    """

    labels: np.ndarray
    logits: np.ndarray
    confidence: np.ndarray
    located: np.ndarray
    features: dict[str, np.ndarray]


@dataclass
class Answers:
    """train and test; head [C, D], the classifier's rows, or empty where it has none of that width."""

    train: Part
    test: Part
    head: np.ndarray


def spread(names: Sequence[str], count: int) -> list[str]:
    """`count` names, evenly over the depth, the deepest among them; all at 0."""
    if not count or len(names) <= count:
        return list(names)
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]


def collect(
    domain: Domain, model: nn.Module, classes: Sequence[str], wanted: Sequence[str], most: int, size: int, sought: int
) -> Answers:  # fmt: skip
    """Answers on at most `most` pictures of each class and split, augmented ones never; a picture that shows several
    classes goes through the model once.

    size: pictures per batch where each is one item; else the domain's own. wanted: the blocks whose features are kept, where a block's output has a row per item.
    sought: how many of the classes, the first ones, are looked for in the pictures (`Part.located`).
    """

    def part(train: bool) -> Part:
        parts = domain.pictures(classes, train=train, most=most)
        if parts is None:
            return _part(domain, classes, _whole(domain, model, classes, wanted, train, most, size))
        return _part(domain, classes, _several(domain, model, parts, () if train else classes[:sought]))

    return Answers(part(True), part(False), _head(domain, model, classes))


def items(domain: Domain, name: str, train: bool, most: int, size: int) -> Iterator[Batch]:
    """Batches of the first `most` items of a class, in order, without augmentation."""
    if train:
        chosen = tuple(range(min(most, domain.size([name], train=True))))
        yield from domain.loader([name], train=True, stream=Ordered(0, size, items=chosen))
        return
    seen = 0
    for batch in domain.loader([name], train=False):
        if seen >= most:
            return
        yield batch
        seen += len(domain.item_names(batch))


class Own(NamedTuple):
    """What a model says of the items of one class in one batch: tensors of a row per item; see `Part`."""

    name: str
    scores: Tensor
    features: dict[str, Tensor]
    located: Tensor | None = None


def _whole(
    domain: Domain, model: nn.Module, classes: Sequence[str], wanted: Sequence[str], train: bool, most: int, size: int
) -> Iterator[Own]:  # fmt: skip
    """Of pictures that are one item each."""
    model.eval()
    batches = ((name, batch) for name in classes for batch in items(domain, name, train, most, size))
    for number, (name, batch) in enumerate(batches):
        seed_all(derive(0, "answers", number))  # a loss may draw points
        with torch.inference_mode(), watched(model, wanted) as seen:
            prediction = domain.predict(model, batch)
        own = prediction.labels == domain.classes.row(name)
        features = {block: out for block, out in seen.items() if len(out) == len(own)}
        features[EMBEDDING] = prediction.embedding
        yield Own(name, prediction.scores[own], {block: out[own] for block, out in features.items()})


def _several(
    domain: Domain, model: nn.Module, parts: Iterable[tuple[Batch, Mapping[str, Batch]]], sought: Sequence[str]
) -> Iterator[Own]:
    """Of pictures that hold several items: one forward pass for all classes, and one matching for each."""
    model.eval()
    for number, (whole, own) in enumerate(parts):
        found = []
        with torch.inference_mode():
            outputs = domain.outputs_of(model, whole)
            for name, part in own.items():
                seed_all(derive(0, "answers", number, name))  # a matching may draw points
                rows = domain.matched(model, part, outputs)
                covers = domain.located(model, part, outputs) if name in sought else None
                found.append(Own(name, rows.scores, {EMBEDDING: rows.embedding}, covers))
        yield from found


def _part(domain: Domain, classes: Sequence[str], found: Iterable[Own]) -> Part:
    """The answers one below the other, class by class."""
    columns: dict[str, list[np.ndarray]] = {}
    order = domain.classes.rows(classes)
    order += [row for row in range(len(domain.classes)) if row not in order]
    for own in sorted(found, key=lambda one: classes.index(one.name)):
        label = classes.index(own.name)
        values = {**own.features, "logits": own.scores[:, order], "confidence": domain.confidence(own.scores)}
        if own.located is not None:
            values["located"] = _named(own.located, label, order)
        for key, value in values.items():
            columns.setdefault(key, []).append(value.float().cpu().numpy())
        columns.setdefault("labels", []).append(np.full(len(own.scores), label))
    arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
    count = len(arrays["labels"])
    located = arrays.get("located", np.zeros((0, 4), np.float32))
    features = {k: v for k, v in arrays.items() if k not in OTHERS and len(v) == count}
    return Part(arrays["labels"], arrays["logits"], arrays["confidence"], located, features)


def _named(covers: Tensor, label: int, order: Sequence[int]) -> Tensor:
    """`Domain.located` with the label in front, and columns instead of the model's rows."""
    column = torch.tensor([*(order.index(row) for row in range(len(order))), len(order)]).to(covers)
    called = column[covers[:, 2:].long().clamp_max(len(order))]
    return torch.cat([torch.full_like(called, label), covers[:, :2], called], dim=1)


def _head(domain: Domain, model: nn.Module, classes: Sequence[str]) -> np.ndarray:
    """[len(classes), D] rows of the classifier: the last matrix among its parameters; empty where a cosine with them says
    nothing."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = [n for n in domain.head_rows(model, classes) if parameters[n].dim() == 2 and parameters[n].shape[1] > 1]
    if not found or not domain.cosine_rows:
        return np.zeros((0, 0), np.float32)
    return parameters[found[-1]].detach()[domain.classes.rows(classes)].float().cpu().numpy()


# ---- on disk -------------------------------------------------------------------------------------------------


def digest(model: nn.Module, domain: Domain, *words: object) -> str:
    """A key of everything that decides the answers: weights, data as the domain describes it, and further words."""
    found = hashlib.sha256(repr((FORM, domain.describe(), domain.documents(), words)).encode())
    found.update(weights_digest(model).encode())
    return found.hexdigest()[:24]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, by name."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name as one .npz, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for flags
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> dict[str, np.ndarray]:
    """What `save` wrote; nothing in it can be code."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def pack(answers: Answers) -> dict[str, np.ndarray]:
    """Answers as arrays by name, for `save`."""
    found = {"head": answers.head}
    for split, part in (("train", answers.train), ("test", answers.test)):
        found |= {f"{split}/{name}": getattr(part, name) for name in OTHERS}
        found |= {f"{split}/features/{name}": value for name, value in part.features.items()}
    return found


def unpack(arrays: dict[str, np.ndarray]) -> Answers:
    """The inverse of `pack`."""

    def part(split: str) -> Part:
        start = f"{split}/features/"
        features = {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
        labels, logits, confidence, located = (arrays[f"{split}/{name}"] for name in OTHERS)
        return Part(labels, logits, confidence, located, features)

    return Answers(part("train"), part("test"), arrays["head"])
