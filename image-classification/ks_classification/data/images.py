"""Labelled images from folders, torchvision's CIFAR, Hugging Face folders and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from common.domain import train_and_test
from common.errors import UserError
from common.images import ImageError, open_image, probe
from common.notes import note
from common.pictures import TRAIN, first_folder, is_hidden
from common.progress import in_threads
from common.saved_data import column_of, encoded, read_dataset, undecoded
from common.splits import shorten

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # and the folder that torchvision makes
PUBLISHED = re.compile(r"^(\d+)\D(n\d{8})$")  # `17?n01532829`: logit row, one separator, WordNet id


class Item(NamedTuple):
    """One image: where it comes from, its class, and how to open it.

    source: a path, bytes of a file, an array [H, W] or [H, W, 3], a picture, or a function that gives one of them or a
        tensor [C, H, W] (uint8, or float in 0..1); it is called each time.
    """

    name: str
    label: str
    source: Any

    def open(self, least: int = 0) -> Image.Image:
        """The image as upright RGB, of at least `least` pixels a side where it has them; see `common.images`."""
        source = self.source() if callable(self.source) else self.source
        return open_image(Path(source) if isinstance(source, str) else source, self.name, least)

    def digest(self) -> bytes:
        """Stands for the picture: a hash of its file, or of its pixels where it has none."""
        content = self.source
        if isinstance(content, str):
            content = Path(content).read_bytes()
        if not isinstance(content, bytes):
            picture = np.asarray(self.open())
            content = repr(picture.shape).encode() + picture.tobytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    def look(self) -> None:
        """Opens no more of it than shows most damage; see `probe`. What a function gives is looked at when it is drawn."""
        if isinstance(self.source, str):
            probe(Path(self.source))
        elif not callable(self.source):
            self.open()


TESTS = ("test", "testing", "val", "valid", "validation")


@dataclass
class ImageSet:
    """Train and test items of named classes.

    rows: logit rows that the folder names themselves state (published layout), class name -> row.
    """

    classes: list[str]
    train: list[Item]
    test: list[Item]
    rows: dict[str, int] = field(default_factory=dict)

    def joined(self, other: ImageSet) -> ImageSet:
        """Both sets as one; a class in both has the items of both."""
        classes = self.classes + [c for c in other.classes if c not in self.classes]
        return ImageSet(classes, self.train + other.train, self.test + other.test, {**self.rows, **other.rows})


def load(text: str, cache: str = "data", fetch: bool = True) -> ImageSet:
    """The image set that a --data flag names; several, separated by commas, are joined.

    Args:
        text: "digits", "cifar10", "cifar100", "hf:<folder or name>", or a folder with train/ and test/.
        cache: where torchvision keeps CIFAR.
        fetch: whether what is not there may be downloaded.

    Raises:
        UserError: nothing there, or an empty folder; says which.
    """
    result: ImageSet | None = None
    if not text.strip(" ,"):
        raise UserError("--data is empty; name a folder with train/ and test/, digits, cifar10 or cifar100.")
    for name in (piece.strip() for piece in text.split(",")):
        if name == "digits":
            one = digits()
        elif name in CIFAR:
            one = cifar(name, cache, fetch)
        elif name.startswith("hf:"):
            one = hugging_face(name[3:], fetch)
        else:
            one = folders(name)
        result = one if result is None else result.joined(one)
    return result


def digits(seed: int = 0) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8x8, four fifths for training, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    items = [
        Item(f"digit_{i:04d}", str(y), image) for i, (image, y) in enumerate(zip(images, data.target, strict=True))
    ]
    train, test = train_test_split(items, test_size=0.2, random_state=seed, stratify=data.target)
    return ImageSet([str(d) for d in range(10)], train, test)


def folders(root: str) -> ImageSet:
    """Class folders: root/train/<class>/*, root/test/<class>/* (also val/, valid/ or validation/), or root/<class>/*, of
    whose images every fifth is a test image, the second first.

    So lie the published ones, CASIA-100 and ImageNet100 among them; classes are in the order of their folders'
    names. Folder names of the published form `<row><separator><WordNet id>` give the class its logit row.
    """
    base = Path(root)
    if not base.is_dir():
        raise UserError(
            f"--data: there is no folder {root}; name a folder with train/ and test/, digits, cifar10 or cifar100."
        )
    train_folder, test_folder = (first_folder(base, n) or base / n[0] for n in (TRAIN, TESTS))
    split = train_folder.is_dir() or test_folder.is_dir()
    inner = [] if split else [entry for entry in base.iterdir() if not is_hidden(entry.name)]
    if len(inner) == 1 and any(entry.is_dir() and not is_hidden(entry.name) for entry in inner[0].glob("*")):
        return folders(str(inner[0]))  # the only folder in it: what unpacking leaves
    if not split and any(_files(base)):
        found, test_folder = _class_folders(base), base
        if lone := next((c for c, files in found.items() if len(files) == 1), None):
            raise UserError(f"class folder {base / lone} holds one image; a class needs a test image as well.")
        train, test = ({c: [f for i, f in enumerate(files) if (i % 5 == 1) == tests] for c, files in found.items()}
                       for tests in (False, True))  # fmt: skip
        note(f"{root}: no split is given: every fifth image of each class tests")
    else:
        train, test = _class_folders(train_folder), _class_folders(test_folder)
        for place in sorted(base.iterdir()):
            if place.is_dir() and place.name.lower() in TESTS and place.name != test_folder.name:
                note(f"{root}: {place.name}/ is not used: {test_folder.name}/ tests")
    classes = sorted(set(train) | set(test))
    rows = {_class_name(c): int(PUBLISHED.match(c)[1]) for c in classes if PUBLISHED.match(c)}
    for found, place in ((train, test_folder if test_folder == base else train_folder), (test, test_folder)):
        empty = [c for c, files in found.items() if not files]
        if empty:
            raise UserError(f"class folder {place / empty[0]} is empty; put images in it or take it away.")
    order = sorted((_class_name(c) for c in classes), key=lambda n: (rows.get(n, -1), n))
    return ImageSet(order, _items(train), _items(test), rows)


def _class_name(folder: str) -> str:
    match = PUBLISHED.match(folder)
    return match[2] if match else folder


def _class_folders(place: Path) -> dict[str, list[str]]:
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; images go in <root>/train/<class>/ and <root>/test/<class>/.")
    found = {
        entry.name: _files(entry) for entry in sorted(place.iterdir()) if entry.is_dir() and not is_hidden(entry.name)
    }
    if not found:
        raise UserError(f"{place} is empty; it must hold one folder of images per class.")
    return found


def _files(folder: Path) -> list[str]:
    """The files below a folder, hidden ones left out, in the order of their paths."""
    found = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if not is_hidden(name)]
    return sorted(found, key=lambda path: path.split(os.sep))


def _items(found: dict[str, list[str]]) -> list[Item]:
    return [Item(path, label, path) for name, paths in found.items() for label in [_class_name(name)] for path in paths]


def cifar(name: str, cache: str, fetch: bool = True) -> ImageSet:
    """CIFAR-10 or CIFAR-100 as torchvision keeps it, downloaded into `cache` on first use."""
    import torchvision

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    there = not to_be_fetched(name, cache)
    _check_fetch(name, there or fetch)
    try:
        parts = [kind(cache, train=train, download=not there) for train in (True, False)]
    except Exception as error:  # torchvision raises RuntimeError, URLError, ... for a failed download
        raise UserError(f"{name} is not in {cache} and could not be downloaded ({error}).") from None

    def items(part: Any) -> list[Item]:
        pairs, split = zip(part.data, part.targets, strict=True), "train" if part.train else "test"
        return [Item(f"{name}_{split}_{i:05d}", part.classes[y], x) for i, (x, y) in enumerate(pairs)]

    return ImageSet(list(parts[0].classes), *map(items, parts))


def to_be_fetched(text: str, cache: str) -> str:
    """The first of the data sets of a --data flag that `load` would download; "" where all are here."""
    for name in (piece.strip() for piece in text.split(",")):
        if name in CIFAR and not (Path(cache) / CIFAR[name]).is_dir():
            return name
        if name.startswith("hf:") and not Path(name[3:]).is_dir():
            return name
    return ""


def _check_fetch(name: str, allowed: bool) -> None:
    if not allowed:
        raise UserError(
            f"{name} is not here; neither a dry run nor a run's record downloads: give --data {name}, or a folder."
        )


def hugging_face(name: str, fetch: bool = True) -> ImageSet:
    """A Hugging Face data set with an image and a label column (a folder saved by save_to_disk, or a name)."""
    _check_fetch(f"hf:{name}", fetch or Path(name).is_dir())
    data = read_dataset(name)
    test = next((s for s in ("test", "validation", "val") if s in data), None)
    if "train" not in data or test is None:
        raise UserError(f"data set {name!r} has splits {', '.join(data)}; train and test (or validation) are needed.")
    image, label = (column_of(data["train"], kind) for kind in ("Image", "ClassLabel"))
    if image is None or label is None:
        columns = ", ".join(data["train"].features)
        raise UserError(f"data set {name!r} needs an Image and a ClassLabel column; it has {columns}.")
    names = data["train"].features[label].names

    def items(split: str) -> list[Item]:
        rows = undecoded(data[split], image)
        return [
            Item(f"{split}_{i:06d}", names[y], partial(encoded, rows, i, image))
            for i, y in enumerate(data[split][label])
        ]

    return ImageSet(list(names), items("train"), items(test))


def from_datasets(data: Any, names: Sequence[str]) -> ImageSet:
    """The image set of (train, test), two torch Datasets of (image, label).

    Args:
        names: of the labels, in order; by default the Datasets' own `classes`.

    Raises:
        UserError: no pair, or labels without a name.
    """
    *pair, classes = train_and_test(data, names)
    parts = []
    for part, dataset in zip(("train", "test"), pair, strict=True):
        labels = [int(label) for label in getattr(dataset, "targets", None) or (row[1] for row in dataset)]
        strange = sorted({label for label in labels if not 0 <= label < len(classes)})
        if strange:
            raise UserError(f"label {strange[0]} has no name; name all labels, in order, with data_classes=[...].")
        sources = (partial(_picture_of, dataset, i) for i in range(len(labels)))
        parts.append(
            [Item(f"{part}_{i:06d}", classes[y], x) for i, (y, x) in enumerate(zip(labels, sources, strict=True))]
        )
    return ImageSet(classes, *parts)


def _picture_of(dataset: Any, index: int) -> Any:
    return dataset[index][0]


def decode(
    items: Sequence[Item], prepare: Callable[[Image.Image], Any], skip_corrupt: bool, what: str, least: int = 0
) -> tuple[list[int], list[Any], list[str]]:
    """Opens every image once.

    Args:
        prepare: what to keep of an image (a resized array, or nothing).
        skip_corrupt: leave unreadable files out instead of stopping.
        what: for the progress bar.
        least: shorter side in pixels that is enough.

    Returns:
        (indices of the readable items, what `prepare` gave for them, names of the unreadable files).

    Raises:
        UserError: some file is no readable image; names them.
    """
    return _sift(items, lambda item: prepare(item.open(least)), skip_corrupt, what)


def readable(items: Sequence[Item], skip_corrupt: bool, what: str) -> tuple[list[Item], list[str]]:
    """(readable items, names of the unreadable files), before any is drawn.

    Damage in the middle of a file shows when it is decoded: with `skip_corrupt` every image is, for what is left out
    must be known before the first draw; else the first draw of such an image stops the run.

    Raises:
        UserError: like `decode`.
    """
    good, _, bad = _sift(items, (lambda item: item.open() and None) if skip_corrupt else Item.look, skip_corrupt, what)
    return [items[i] for i in good], bad


def _sift(
    items: Sequence[Item], use: Callable[[Item], Any], skip_corrupt: bool, what: str
) -> tuple[list[int], list[Any], list[str]]:
    def one(item: Item) -> tuple[bool, Any]:
        try:
            return True, use(item)
        except ImageError as error:
            return False, f"{item.name} ({error.reason})"

    results = list(in_threads(one, items, what))
    bad = [value for fine, value in results if not fine]
    if bad and not skip_corrupt:
        raise UserError(
            f"{len(bad)} file(s) are no readable images: {shorten(bad, 5)}; mend them, or add --skip-corrupt."
        )
    good = [i for i, (fine, _) in enumerate(results) if fine]
    names = [i.name for i, (fine, _) in zip(items, results, strict=True) if not fine]
    return good, [results[i][1] for i in good], names
