"""What is wrong with images, before they are trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from PIL import Image

from common import jpeg
from common.clean import Copies
from common.session import Problem
from ks_classification.data.images import decode, load

SMALL = 8  # pixels: a shorter side below is a note


def check(text: str) -> tuple[list[str], list[Problem]]:
    """(a table of images per class, problems): every image is opened.

    Errors: an image that cannot be read, a class without training or test images. Notes: very small images, and a
    picture that stands in training and test data, compared by its pixels.
    """
    images, problems = load(text), list[Problem]()
    seen: dict[str, dict[str, str]] = {}
    for part in ("train", "test"):
        items = getattr(images, part)
        good, found, bad = decode(items, _fingerprint, True, f"reading {part} images")
        problems += [Problem("unreadable image", name, "is no readable image") for name in bad]
        seen[part] = {digest: items[i].name for i, (digest, _) in zip(good, found, strict=True)}
        small = [(items[i].name, size) for i, (_, size) in zip(good, found, strict=True) if min(size) < SMALL]
        problems += [Problem("small image", n, f"{s[0]} x {s[1]} pixels", fatal=False) for n, s in small]
    for digest in seen["train"].keys() & seen["test"].keys():
        where, other = seen["test"][digest], seen["train"][digest]
        problems.append(Problem("test image in the training data", where, f"same pixels as {other}", fatal=False))
    every = [item.source for part in ("train", "test") for item in getattr(images, part)]
    problems += jpeg.damage(Path(source) for source in every if isinstance(source, str))
    counts = {part: Counter(item.label for item in getattr(images, part)) for part in ("train", "test")}
    for part, name in (("train", "training"), ("test", "test")):
        bare = [c for c in images.classes if not counts[part][c]]
        problems += [Problem("class without images", c, f"has no {name} image") for c in bare]
    lines = [f"{text}: {len(images.train)} training and {len(images.test)} test images, {len(images.classes)} classes"]
    lines += [f"  {c:<28}{counts['train'][c]:>8} train{counts['test'][c]:>8} test" for c in images.classes]
    return lines, problems


def _fingerprint(image: Image.Image) -> tuple[str, tuple[int, int]]:
    return hashlib.blake2b(image.tobytes() + repr(image.size).encode(), digest_size=12).hexdigest(), image.size


def fix(text: str, out: str) -> list[str]:
    """Writes a cleaned copy: class folders of upright RGB pictures, without unreadable ones and without test pictures
    that stand in the training data. Lines that say what was done.

    Raises:
        UserError: `out` is there already.
    """
    copies, images = Copies(out), load(text)
    left, seen = Counter[str](), {""}
    for part in ("train", "test"):
        items, now = getattr(images, part), set[str]()
        good, found, bad = decode(items, _fingerprint, True, f"reading {part} images")
        left["unreadable"] += len(bad)
        for i, (digest, _) in zip(good, found, strict=True):
            if digest in seen:
                left["in the training data"] += 1
                continue
            now.add(digest)
            source = items[i].source
            copies.add(
                f"{part}/{items[i].label}", Path(source) if isinstance(source, str) else items[i].open(), items[i].name
            )
        seen |= now
    return [f"wrote {out}: {copies.rewritten} pictures rewritten as PNG",
            *(f"  left out, {why}: {count}" for why, count in left.items() if count)]  # fmt: skip
