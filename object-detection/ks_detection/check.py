"""Everything that is wrong with a data set, found before a run instead of in the middle of it."""

from __future__ import annotations

import re
from collections import Counter

from common import jpeg
from common.images import open_image
from common.session import Problem
from ks_detection.data.folders import load
from ks_detection.data.records import DetectionSet, image_problem


def check(text: str) -> tuple[list[str], list[Problem]]:
    """(a table of images and objects per class, problems of the annotations and of every image, which is opened).

    Raises:
        UserError: there is no data set to look at.
    """
    data = load(text, strict=False)
    problems = list(data.problems)
    found = (image_problem(record, lambda path: open_image(path).size) for record in [*data.train, *data.test])
    problems += [problem for problem in found if problem]
    problems += jpeg.damage(record.path for record in [*data.train, *data.test] if record.path)
    problems += _class_problems(data)
    return describe(text, data), problems


def _class_problems(data: DetectionSet) -> list[Problem]:
    problems = []
    for part, records in (("training", data.train), ("test", data.test)):
        counts = Counter(a.label for record in records for a in record.annotations if not a.crowd)
        problems += [
            Problem("no objects", f"class {name!r}", f"has no {part} object", False)
            for name in data.classes
            if not counts[name]
        ]
    alike: dict[str, list[str]] = {}
    for name in data.classes:
        alike.setdefault(re.sub(r"[\W_]+", "", name.casefold()) or name, []).append(name)
    problems += [
        Problem("similar names", f"class {names[0]!r}", f"and {names[1]!r} are two classes", False)
        for names in alike.values()
        if len(names) > 1
    ]
    both = {p.name for p in data.train} & {p.name for p in data.test}
    if both and all(p.path is not None for p in data.train):
        shared = {p.path for p in data.train} & {p.path for p in data.test}
        problems += [
            Problem("duplicate", str(path), "is both a training and a test image", False) for path in sorted(shared)
        ]
    return problems


def describe(text: str, data: DetectionSet) -> list[str]:
    """Lines of a table: images and objects per class."""
    lines = [f"{text}: {len(data.train)} training and {len(data.test)} test images, {len(data.classes)} classes"]
    counts = [Counter(t.label for p in part for t in p.annotations if not t.crowd) for part in (data.train, data.test)]
    for name in data.classes:
        number = f" (id {data.ids[name]})" if name in data.ids else ""
        lines.append(f"  {name + number:<32}{counts[0][name]:>8} training {counts[1][name]:>8} test objects")
    return [*lines, *data.notes]
